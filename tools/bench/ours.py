"""BLUE's side of the benchmarks: its models at the sizes of measure.py, on a CPU.

Imported after the process is pinned, since it starts jax.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from blue.hub.model import Model
from blue.inference.embed import TextEncoder
from blue.models import gemma3, qwen3
from blue.models.decoder import DecoderConfig
from blue.models.params import abstract_params, make_init
from blue.runtime.shapes import Precision
from blue.runtime.sharding import AXES
from blue.sources.encoder import own_encoder
from blue.text.tokenizer import Tokenizer
from blue.training import optimizers
from blue.training.optimizers import make_optimizer, make_schedule
from configs import base
from tools.bench import measure

FLOAT32 = Precision("float32", "float32")


def _sized(cfg: DecoderConfig, size: dict[str, int]) -> DecoderConfig:
    return dataclasses.replace(
        cfg, vocab_size=size["vocab"], width=size["width"], mlp_width=size["mlp_width"],
        num_layers=size["layers"], num_heads=size["heads"],
        num_kv_heads=size["kv_heads"], head_size=size["head_size"],
        window=size.get("window", 0),
    )  # fmt: skip


def profiler(size: str) -> DecoderConfig:
    """Gemma 3 of this size."""
    return _sized(gemma3.tiny_gemma3(), measure.SIZES[size])


def encoder(size: str) -> DecoderConfig:
    """Qwen3-Embedding of this size."""
    return _sized(qwen3.tiny_qwen3(), measure.ENCODERS[size])


def text_encoder(cfg: DecoderConfig, batch_size: int) -> tuple[TextEncoder, float]:
    """The stages' encoder of texts (a token a word) with random weights, buckets as in
    configs/base.py; and its parameters in millions."""
    config, mesh = base.get_config(), one_device()
    config.encoder.batch_size, config.encoder.max_tokens = batch_size, 1024
    config.dtype.params = config.dtype.compute = "float32"
    tokenizer = Tokenizer(
        measure.word_level(cfg.vocab_size),
        config={"pad_token": measure.SPECIAL[0], "eos_token": measure.SPECIAL[1]},
        chat_template=None,
        eos_ids=[measure.END],
    )
    params = make_init(cfg, mesh, "float32")(np.uint32(0))
    model = Model(cfg, params, tokenizer, "bench")
    return own_encoder(config, model, mesh), num_params(params)


def one_device() -> Mesh:
    """A mesh of the first device."""
    return Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), AXES)


def adam(rate: float) -> tuple[Any, Any]:
    """(schedule, optimizer) at a constant rate, as the stages make them."""
    schedule = make_schedule(rate, kind="constant", warmup_steps=0, num_steps=100)
    return schedule, make_optimizer(schedule, b1=0.9, b2=0.95, eps=1e-8, grad_clip=1.0)


def start(cfg: DecoderConfig, mesh: Mesh, optimizer: Any) -> tuple[Any, Any]:
    """(random parameters, the training state around a copy of them)."""
    params = make_init(cfg, mesh, "float32")(np.uint32(0))
    shapes = abstract_params(cfg, mesh, "float32")
    return params, optimizers.make_init_state(shapes, optimizer, mesh)(params)


def num_params(params: Any) -> float:
    """In millions."""
    return round(sum(x.size for x in jax.tree.leaves(params)) / 1e6, 2)


def prompts(cfg: DecoderConfig, users: int, length: int) -> tuple[Any, Any, Any]:
    """Random prompts of full length, their masks, and ids."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(4, cfg.vocab_size, (users, length), np.int32)
    return tokens, np.ones_like(tokens, bool), np.arange(users, dtype=np.int32)
