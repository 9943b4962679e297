"""Tunix's side: its Gemma 3 at the sizes of measure.py, and a tokenizer of numbers."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from tunix.models.gemma3 import model as gemma3

from tools.bench import measure


def profiler(size: str) -> tuple[Any, Any]:
    """(random Gemma 3 in float32, its config)."""
    sizes = measure.SIZES[size]
    config = gemma3.ModelConfig(
        num_layers=sizes["layers"],
        num_embed=sizes["vocab"],
        embed_dim=sizes["width"],
        hidden_dim=sizes["mlp_width"],
        num_heads=sizes["heads"],
        head_dim=sizes["head_size"],
        num_kv_heads=sizes["kv_heads"],
        sliding_window_size=sizes["window"],
        local_base_frequency=10_000,
        global_base_frequency=1_000_000,
        param_dtype=jnp.float32,
    )
    return gemma3.Gemma3(config, rngs=nnx.Rngs(0)), config


class Numbers:
    """A tokenizer whose words are numbers, each its own id."""

    def encode(self, text: str, **_: Any) -> list[int]:
        """Ids of the numbers in `text`."""
        return [int(word) for word in text.split()]

    def decode(self, ids: Any, **_: Any) -> str:
        """The numbers of `ids`."""
        return " ".join(str(int(i)) for i in ids)

    def bos_id(self) -> int:
        """0: Tunix then puts none before a prompt."""
        return 0

    def eos_id(self) -> int:
        """The end token."""
        return measure.END

    def pad_id(self) -> int:
        """The padding."""
        return measure.PAD


def prompts(vocab: int, users: int, length: int, rng: Any) -> list[str]:
    """Random prompts as text."""
    rows = rng.integers(4, vocab, (users, length))
    return [" ".join(map(str, row)) for row in rows]
