"""The encoder: a decoder's hidden state at the last token, of unit length.

Qwen3-Embedding, https://arxiv.org/abs/2506.05176: the text ends with an end token whose
final hidden state is the embedding. `embed` reads one text a row. `embed_packed` reads
several, with a common beginning computed once: the same vectors, with less padding.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from blue.models import attention, splash
from blue.models.attention import KV, Attend, causal_mask, self_attention
from blue.models.decoder import (
    DecoderConfig,
    Params,
    embed_tokens,
    final_norm,
    forward,
    run_block,
    scan_layers,
    window_of,
)
from blue.runtime.shapes import Precision

FLOAT32 = Precision("float32", "float32")


def embed(
    params: Params,
    cfg: DecoderConfig,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    dtype: Any = jnp.float32,
    remat: str = "",
) -> Float[Array, "B E"]:
    """Unit vectors (float32) of right-aligned texts that end with the pooling token.

    One text a row, as the model's authors run it. The programs use `embed_packed`;
    tests compare it with this.
    """
    hidden = forward(params, cfg, tokens, mask, dtype=dtype, remat=remat)[:, -1]
    return unit(hidden)


def embed_packed(
    params: Params,
    cfg: DecoderConfig,
    tokens: Int[Array, "R T"],
    segment: Int[Array, "R T"],
    parent: Int[Array, "R T"],
    position: Int[Array, "R T"],
    ends: Int[Array, "R S"],
    precision: Precision = FLOAT32,
) -> Float[Array, "R S E"]:
    """Unit vectors (float32) of the tokens at `ends`, in rows as packing.py fills them.

    A token sees earlier ones in its row that are of its segment or of its parent.
    Positions count from the start of its text. So it sees what it would see in the text
    alone.
    """
    dtype = jnp.dtype(precision.compute)
    order = jnp.arange(tokens.shape[1])[None]
    keys = segment[:, None, :]
    related = (keys == segment[:, :, None]) | (keys == parent[:, :, None])
    see = related & causal_mask(order, order, window=0)

    def body(x: Array, layer: Params, kind: str) -> tuple[Array, None]:
        earlier = causal_mask(position, position, window=window_of(cfg, kind))
        dense = self_attention(see & earlier, scale=cfg.scale())
        attend = row_attention(cfg, kind, segment, parent, dense)
        return run_block(cfg, layer, kind, x, position, attend)[0], None

    x = embed_tokens(params, cfg, tokens, dtype)
    x, _ = scan_layers(params, cfg, x, body, dtype=dtype, remat=precision.remat)
    hidden = jnp.take_along_axis(x, ends[:, :, None], axis=1)
    return unit(final_norm(params, cfg, hidden))


def row_attention(
    cfg: DecoderConfig,
    kind: str,
    segment: Int[Array, "R T"],
    parent: Int[Array, "R T"],
    dense: Attend,
) -> Attend:
    """The result of `dense`, by the TPU's kernel where possible. It has no windows:
    distances are within a text, not within a row."""
    T, window = segment.shape[1], window_of(cfg, kind)

    def attend(q: Float[Array, "R T N H"], kv: KV) -> tuple[Array, KV]:
        sizes = {"head_size": q.shape[-1], "query_tokens": T, "key_tokens": T}
        kernel = attention.implementation_here(dtype=q.dtype, **sizes)
        if kernel != "splash" or window or not splash.can_number_slots(T):
            return dense(q, kv)
        out = splash.packed_attention(
            q, kv.k, kv.v, segment, parent, scale=cfg.scale(),
            interpret=attention.platform_here() != "tpu",
        )  # fmt: skip
        return out, kv

    return attend


def unit(hidden: Float[Array, "*b E"]) -> Float[Array, "*b E"]:
    """Vectors of length one, in float32."""
    hidden = hidden.astype(jnp.float32)
    length = jnp.sqrt(jnp.sum(hidden * hidden, axis=-1, keepdims=True))
    return hidden / jnp.maximum(length, 1e-12)


def architecture(cfg: DecoderConfig) -> str:
    """The fields of the configuration that can change a vector, as text: names vectors
    on disk.

    The family cannot. `qk_norms` is omitted where it is true, as before the field
    existed.
    """
    text = repr(cfg).replace(f"family={cfg.family!r}, ", "")
    return text.replace("qk_norms=True, ", "")
