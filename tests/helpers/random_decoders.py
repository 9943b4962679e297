"""Decoders of a few layers with random parameters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from blue.models import decoder, gemma3, qwen3
from blue.models.decoder import GLOBAL, LOCAL

SMALL = {"vocab_size": 32, "width": 16, "mlp_width": 24, "head_size": 8, "window": 4}

# one whole period under the scan needs two of them: 4 layers scanned, 1 left over
GEMMA = dataclasses.replace(
    gemma3.tiny_gemma3(),
    **SMALL,
    num_layers=5,
    pattern=(LOCAL, GLOBAL),
    rope_factor=8.0,
)

QWEN = dataclasses.replace(qwen3.tiny_qwen3(), **SMALL, num_layers=2, tied=False)

TWO_LAYERS = dataclasses.replace(GEMMA, num_layers=2)

# these run once: compiling is what takes the time
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random_params(cfg, seed=0):
    """Norms that differ from one another, and matrices that let through what comes."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(
        lambda key: decoder.init_params(cfg, key), jax.random.key(0)
    )

    def leaf(path, shape):
        norm = path[-1].key == "weight"
        center = 0.0 if cfg.norm_plus_one or not norm else 1.0
        return jnp.asarray(rng.normal(center, 0.25, shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def random_tokens(cfg, shape, seed=0):
    tokens = np.random.default_rng(seed).integers(0, cfg.vocab_size, shape)
    return jnp.asarray(tokens, jnp.int32)


def right_aligned(lengths, width):
    return jnp.arange(width)[None] >= width - jnp.asarray(lengths)[:, None]


# --- a prompt and its completions: prompts and completions outgrow the window of 4

LENGTHS, P, G, C = [7, 3, 1], 7, 2, 6


def group_batch(cfg):
    B = len(LENGTHS)
    prompt = random_tokens(cfg, (B, P), seed=2)
    completions = random_tokens(cfg, (B, G, C), seed=3)
    return prompt, right_aligned(LENGTHS, P), completions
