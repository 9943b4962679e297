"""The decoder's passes for generation: a prompt's prefill, and one token at a time.

`prefill` computes each prompt once and keeps its keys and values; `decode_step` adds
one token to each of its G completions. Letters as in decoder.py. Q = K·G: the key/value
heads of a prompt's completions, all completions of the first head first.

A step reads everything once and copies nothing:

* Every layer has its own arrays (`unstack_layers`). Slices of a stack would be copied
  before the loop.
* The G completions of a prompt share its keys and values.
* A local layer keeps only visible slots. Of a prompt these are the last `window`, of a
  completion a ring of `window`: token t overwrites token t - window.
* The cache is a list of arrays, each updated in place. Heads come before slots, the
  order of the products. In another order the CPU compiler transposes the whole cache at
  every step and updates a copy.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from blue.models.attention import (
    KV,
    causal_mask,
    positions_of,
    prompt_attention,
    self_attention,
)
from blue.models.decoder import (
    DecoderConfig,
    Params,
    embed_tokens,
    final_norm,
    layer_params,
    run_block,
    window_of,
)


class Cache(NamedTuple):
    """Keys and values of one layer: of prompts, then Q is K, or of completions."""

    k: Float[Array, "B Q S H"]
    v: Float[Array, "B Q S H"]


def unstack_layers(params: Params) -> Params:
    """The decode layout: "layers" is a tuple of dicts, one a layer; no stacks."""
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    return params | {"layers": tuple(layer_params(params, n) for n in range(count))}


def kept_slots(cfg: DecoderConfig, kind: str, length: int) -> int:
    """How many of `length` slots a layer of this kind keeps."""
    window = window_of(cfg, kind)
    return min(length, window) if window else length


def init_cache(
    cfg: DecoderConfig, batch: int, group: int, length: int, dtype: Any = jnp.float32
) -> list[Cache]:
    """Empty keys and values of the completions, one pair a layer, [B Q S H].

    S: `kept_slots` of the layer's kind.
    """
    heads = cfg.num_kv_heads * group

    def zeros(layer: int) -> Array:
        slots = kept_slots(cfg, cfg.kind(layer), length)
        return jnp.zeros((batch, heads, slots, cfg.head_size), dtype)

    return [Cache(zeros(n), zeros(n)) for n in range(cfg.num_layers)]


def prefill(
    params: Params,
    cfg: DecoderConfig,
    prompt: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    *,
    dtype: Any = jnp.float32,
) -> tuple[Float[Array, "B D"], list[Cache]]:
    """Hidden state of each prompt's last token, and every layer's keys and values.

    params: in the decode layout. A local layer has keys and values of the last
    `kept_slots` only. The last layer's output is computed at the last position only.
    """
    P, last = prompt.shape[1], cfg.num_layers - 1
    at = positions_of(prompt_mask)
    kinds = {cfg.kind(n) for n in range(cfg.num_layers)}
    attend = {
        kind: prompt_attention(
            prompt_mask, scale=cfg.scale(), window=window_of(cfg, kind)
        )
        for kind in kinds
    }
    x = embed_tokens(params, cfg, prompt, dtype)
    kept: list[Cache] = []
    for n, layer in enumerate(params["layers"]):
        kind = cfg.kind(n)
        here = _last_query(cfg, kind, prompt_mask) if n == last else attend[kind]
        x, kv = run_block(cfg, layer, kind, x, at, here)
        newest = slice(P - kept_slots(cfg, kind, P), None)
        kept.append(Cache(*(a[:, newest].transpose(0, 2, 1, 3) for a in kv)))
    return final_norm(params, cfg, x)[:, 0], kept


def _last_query(cfg: DecoderConfig, kind: str, mask: Bool[Array, "B P"]) -> Any:
    """`prompt_attention` of the last position alone."""
    at = positions_of(mask)
    window = window_of(cfg, kind)
    see = causal_mask(at[:, -1:], at, window=window) & mask[:, None, :]
    attend = self_attention(see, scale=cfg.scale(), window=window)
    return lambda q, kv: attend(q[:, -1:], kv)


def decode_attention(
    cfg: DecoderConfig,
    q: Float[Array, "B G N H"],
    prompt: Cache,
    own: Cache,
    see_prompt: Bool[Array, "B P"],
    see_own: Bool[Array, "#B S"],
) -> Float[Array, "B G N H"]:
    """One query a completion over [its prompt's keys, its own keys], in one softmax.

    prompt: [B K P H], shared by the group; own: [B Q S H]. A query sees one key or
    more. Equals `attention.group_attention`, without concatenating the keys.
    """
    B, G, N, H = q.shape
    K, Q = prompt.k.shape[1], own.k.shape[1]
    q = q.reshape(B, G, K, N // K, H).transpose(0, 2, 1, 3, 4).reshape(B, Q, N // K, H)
    f32 = {"preferred_element_type": jnp.float32}
    least = jnp.finfo(jnp.float32).min

    # M: queries of the G completions that read the same keys
    shared = jnp.einsum("BKMH,BKPH->BKMP", q.reshape(B, K, -1, H), prompt.k, **f32)
    shared = jnp.where(see_prompt[:, None, None], shared * cfg.scale(), least)
    shared = shared.reshape(B, Q, N // K, -1)
    single = jnp.einsum("BQRH,BQSH->BQRS", q, own.k, **f32)
    single = jnp.where(see_own[:, None, None], single * cfg.scale(), least)
    top = jnp.maximum(shared.max(-1, keepdims=True), single.max(-1, keepdims=True))
    shared, single = jnp.exp(shared - top), jnp.exp(single - top)
    total = shared.sum(-1, keepdims=True) + single.sum(-1, keepdims=True)
    shared, single = shared.astype(q.dtype), single.astype(q.dtype)

    shared = shared.reshape(B, K, -1, prompt.k.shape[2])
    out = jnp.einsum("BKMP,BKPH->BKMH", shared, prompt.v, **f32).reshape(q.shape)
    out = out + jnp.einsum("BQRS,BQSH->BQRH", single, own.v, **f32)
    out = (out / total).astype(q.dtype).reshape(B, K, G, N // K, H)
    return out.transpose(0, 2, 1, 3, 4).reshape(B, G, N, H)


def _write_slot(
    cache: Float[Array, "B Q S H"], new: Float[Array, "B G K H"], slot: Array
) -> Float[Array, "B Q S H"]:
    """The cache with one more token a row: at one slot, or at each prompt's own."""
    B, Q, S, H = cache.shape
    new = new.transpose(0, 2, 1, 3).reshape(B, Q, 1, H).astype(cache.dtype)
    slot = slot % S  # a ring where there are fewer slots than tokens
    write = jax.lax.dynamic_update_slice_in_dim
    if slot.ndim == 0:  # one slice: cheaper than the scatter of many
        return write(cache, new, slot, axis=2)
    return jax.vmap(lambda c, n, s: write(c, n, s, axis=1))(cache, new, slot)


def _attend_step(
    cfg: DecoderConfig,
    slot: Array,
    prompt: Cache,
    cache: Cache,
    see: tuple[Array, Array],
    q: Array,
    kv: KV,
) -> tuple[Array, Cache]:
    """Attention of one new token a row; returns the cache with its slot written."""
    own = Cache(_write_slot(cache.k, kv.k, slot), _write_slot(cache.v, kv.v, slot))
    return decode_attention(cfg, q, prompt, own, *see), own


def decode_step(
    params: Params,
    cfg: DecoderConfig,
    tokens: Int[Array, "B G"],
    slot: Int[Array, "*B"],
    prompt_mask: Bool[Array, "B P"],
    prompt_kv: Sequence[Cache],
    cache: Sequence[Cache],
    *,
    dtype: Any = jnp.float32,
) -> tuple[Float[Array, "B G D"], list[Cache]]:
    """One more token of every completion.

    params: in the decode layout. slot: how many tokens of the completion came before:
    one number for all rows, or one a prompt [B].
    """
    at = positions_of(prompt_mask)
    rows = slot[None] if slot.ndim == 0 else slot  # [1] or [B]
    position = at[:, -1] + 1 + rows  # [B]
    layer_of = {cfg.kind(n): n for n in range(cfg.num_layers)}  # one of each kind

    def visible(kind: str) -> tuple[Array, Array]:
        """[B P] of the prompt's slots, [1 S] or [B S] of the completion's."""
        n, window = layer_of[kind], window_of(cfg, kind)
        newest = slice(at.shape[1] - prompt_kv[n].k.shape[2], None)
        back = causal_mask(position[:, None], at[:, newest], window=window)[:, 0]
        # Once a ring is full, all its slots are visible.
        own = jnp.arange(cache[n].k.shape[2])[None] <= rows[:, None]
        return back & prompt_mask[:, newest], own

    see = {kind: visible(kind) for kind in layer_of}
    x = embed_tokens(params, cfg, tokens, dtype)
    where = jnp.broadcast_to(position[:, None], tokens.shape)
    new_cache: list[Cache] = []
    for n, layer in enumerate(params["layers"]):
        kind = cfg.kind(n)
        attend = functools.partial(
            _attend_step, cfg, slot, prompt_kv[n], cache[n], see[kind]
        )
        x, own = run_block(cfg, layer, kind, x, where, attend)
        new_cache.append(own)
    return final_norm(params, cfg, x), new_cache
