"""The encoder: a decoder's hidden state at the last token, of unit length.

Qwen3-Embedding, https://arxiv.org/abs/2506.05176: the text ends with an end token whose
final hidden state is the embedding.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from blue.models.decoder import DecoderConfig, Params, forward


def embed(
    params: Params,
    cfg: DecoderConfig,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    dtype: Any = jnp.float32,
    remat: str = "",
) -> Float[Array, "B E"]:
    """Unit vectors (float32) of right-aligned texts that end with the pooling token."""
    hidden = forward(params, cfg, tokens, mask, dtype=dtype, remat=remat)[:, -1]
    hidden = hidden.astype(jnp.float32)
    length = jnp.sqrt(jnp.sum(hidden * hidden, axis=-1, keepdims=True))
    return hidden / jnp.maximum(length, 1e-12)
