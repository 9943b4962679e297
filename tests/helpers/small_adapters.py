"""Tiny models with adapters."""

import dataclasses
import functools

import jax
import numpy as np
from jax.sharding import Mesh

from blue.models import decoder, lora, qwen3
from blue.models.decoder import Lora
from blue.runtime.sharding import AXES, by_batch, put
from blue.training.optimizers import make_optimizer, make_schedule
from blue.training.policy import UpdateBatch

SMALL = {"vocab_size": 64, "width": 32, "mlp_width": 48, "head_size": 8, "window": 5}

EVERY = Lora(rank=4, alpha=6.0, targets=lora.TARGETS)

SOME = Lora(rank=2, alpha=3.0, targets=("q", "o", "down"))

QWEN = dataclasses.replace(qwen3.tiny_qwen3(), **SMALL, num_layers=2, lora=SOME)

# these run once: compiling is what takes the time
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def fresh_params(cfg):
    return jit(lambda: decoder.init_params(cfg, jax.random.key(0)))()


# --- programs

B, G, P, C = 8, 2, 6, 5


def mesh_of(*shape):
    devices = np.asarray(jax.devices()[: int(np.prod(shape))])
    return Mesh(devices.reshape(shape), AXES)


def make_optimizer_at(lr):
    """Its eps is large: Adam would blow up the rounding of tiny gradients."""
    schedule = make_schedule(lr, kind="constant", warmup_steps=0, num_steps=5)
    return schedule, make_optimizer(schedule, b1=0.9, b2=0.95, eps=1e-3, grad_clip=1.0)


def grpo_batch(mesh):
    rng = np.random.default_rng(0)
    host = UpdateBatch(
        prompt=rng.integers(0, 64, (B, P)).astype(np.int32),
        prompt_mask=np.ones((B, P), bool),
        tokens=rng.integers(0, 64, (B, G, C)).astype(np.int32),
        mask=np.ones((B, G, C), bool),
        sampler_logprobs=-rng.random((B, G, C)).astype(np.float32),
        ref_logprobs=-4 * rng.random((B, G, C)).astype(np.float32),
        advantages=rng.normal(size=(B, G)).astype(np.float32),
        teaching=np.ones((B, G), bool),
    )
    return put(host, by_batch(mesh))
