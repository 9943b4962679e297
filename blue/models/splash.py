"""Attention on TPUs: jax's splash kernel over the tiles of a static mask.

Prompts are right-aligned, so the distance between two slots is static. For prompt slot
p and completion token c it is P - p + c. Causality and windows are therefore a static
mask (`Visible`); only padding is data, passed as segments. The kernel computes only
tiles that are partly visible, forward and backward. No [T, S] array of scores is in
main memory. For rows of several texts (packing.py) the mask is data: the kernel
computes it from one number a query (`packed_attention`). Equal to the dense attention
of decoder.py and encoder.py to float tolerance, for every query that is no padding.

Flash attention, https://arxiv.org/abs/2205.14135; jax 0.10.2's kernel,
jax.experimental.pallas.ops.tpu.splash_attention.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
    splash_attention_mask_info,
)
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from blue.runtime.sharding import BATCH

LANES = 128  # tiles are multiples of it; blocks of tokens are padded to a multiple
TILES = (512, 256, 128)  # queries and keys of a tile: the first that fits is used
FEW_KEYS = 512  # with fewer, dense scores are small
KEPT = "splash"  # what `jax.checkpoint` may keep for the backward kernels
BITS = 10  # of a slot's number: three numbers fill an int32
MOST_PACKED = 1 << BITS  # slots of a row


def fits_tiles(head_size: int, query_tokens: int, key_tokens: int) -> bool:
    """Whether blocks are long enough: tiles of queries are at least half full."""
    enough = key_tokens >= FEW_KEYS and query_tokens > LANES // 2
    return head_size % LANES == 0 and enough


def can_number_slots(tokens: int) -> bool:
    """Whether `packed_attention` can number the slots of such rows."""
    return padded(tokens) <= MOST_PACKED


@dataclasses.dataclass(frozen=True)
class Visible(splash_attention_mask.Mask):
    """Which keys a query sees. Keys are a prompt and the tokens of all completions;
    queries are those tokens. A single block of tokens is one completion without a
    prompt.
    """

    prompt: int  # tokens
    completions: int
    tokens: int  # of a completion
    window: int  # 0: no limit

    @property
    def shape(self) -> tuple[int, int]:
        """Queries, keys."""
        queries = self.completions * self.tokens
        return queries, self.prompt + queries

    def __getitem__(self, tile: tuple[slice, slice]) -> np.ndarray:
        places = zip(tile, self.shape, strict=True)
        q, k = (np.arange(*s.indices(n), dtype=np.int32) for s, n in places)
        own = k - self.prompt  # below 0: of the prompt
        completion, q = np.divmod(q, self.tokens)
        of = np.where(own < 0, -1, own // self.tokens)
        k = np.where(own < 0, own, own % self.tokens)
        visible = (of < 0)[None] | (of[None] == completion[:, None])
        if not visible.any():
            return visible  # most tiles belong to another completion
        back = q[:, None] - k[None]
        visible &= back >= 0
        return visible & (back < self.window) if self.window else visible

    @property
    def tile(self) -> int:
        """Queries, and keys, of a tile. Raises where lengths are no multiple of 128."""
        whole = (self.prompt, self.tokens)
        return next(t for t in TILES if not any(n % t for n in whole))


def padded(tokens: int) -> int:
    """Tokens of a block with its padding."""
    return -(-tokens // LANES) * LANES


@functools.cache
def make_kernel(visible: Visible, heads: int, interpret: bool) -> Any:
    """(q [N T H], k [K S H], v, SegmentIds) -> [N T H]; `interpret`: without a TPU."""
    mask = splash_attention_mask.MultiHeadMask([visible] * heads)
    return _kernel(*_tables(mask, visible.tile), visible.tile, interpret)


def _tables(mask: splash_attention_mask.MultiHeadMask, T: int) -> tuple[Any, Any, Any]:
    """A mask's tiles by queries and by keys, and the function that makes it, or None.

    As `make_splash_mha` makes them, but in numpy: they are made while a program is
    traced, perhaps for devices that do not exist.
    """
    shards = {"head_shards": 1, "q_seq_shards": 1}
    by_queries, see = splash_attention_mask_info.process_mask(mask, (T, T), **shards)
    by_keys, _ = splash_attention_mask_info.process_mask_dkv(mask, (T, T), **shards)
    return by_queries, by_keys, see


def _kernel(by_queries: Any, by_keys: Any, see: Any, T: int, interpret: bool) -> Any:
    """Forward and backward over tiles of T queries and T keys."""
    names = ("q", "kv", "kv_compute")
    names += ("q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    tiles: dict[str, Any] = {f"block_{name}": T for name in names}
    return splash_attention_kernel.SplashAttentionKernel(
        by_queries,
        by_queries,
        by_keys,
        block_sizes=splash_attention_kernel.BlockSizes(**tiles),
        is_mqa=False,
        save_residuals=False,
        mask_value=splash_attention_kernel.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=KEPT,
        mask_function=see,
        interpret=interpret,
    )


@functools.cache
def _causal_tables(tokens: int, heads: int) -> tuple[Any, Any]:
    """Tiles of a row in which a token may see something of its own text or another."""
    mask = splash_attention_mask.CausalMask((tokens, tokens))
    heads_mask = splash_attention_mask.MultiHeadMask([mask] * heads)
    return _tables(heads_mask, Visible(0, 1, tokens, 0).tile)[:2]


def attention(
    q: Float[Array, "B G C N H"],
    k: tuple[Float[Array, "B P K H"], Float[Array, "B G C K H"]],
    v: tuple[Float[Array, "B P K H"], Float[Array, "B G C K H"]],
    real: tuple[Bool[Array, "B P"], Bool[Array, "B G C"]],
    *,
    scale: float,
    window: int,
    interpret: bool,
) -> Float[Array, "B G C N H"]:
    """G completions attend to their prompt's keys and each to its own.

    k, v: of the right-aligned prompt, shared, and of the completions. real: which of
    them are no padding. Rows are sharded as by `sharding.keep_rows`; heads are split
    over `tensor` if it divides them.
    """
    (B, G, C, N, H), P = q.shape, k[0].shape[1]
    visible = Visible(padded(P), G, padded(C), window)

    def own(x: Array) -> Array:  # padding at the end is never visible
        rest = ((0, 0),) * (x.ndim - 3)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, visible.tokens - C), *rest))
        return x.reshape(B, -1, *x.shape[3:])

    def all_keys(prompt: Array, x: Array) -> Array:  # padding comes first
        rest = ((0, 0),) * (prompt.ndim - 2)
        prompt = jnp.pad(prompt, ((0, 0), (visible.prompt - P, 0), *rest))
        return jnp.concatenate([prompt, own(x)], axis=1)

    def on_a_device(q: Array, k: Array, v: Array, segments: Array) -> Array:
        kernel = make_kernel(visible, q.shape[1], interpret)
        ids = splash_attention_kernel.SegmentIds(
            segments[:, visible.prompt :], segments
        )
        with _flops_in_name(kernel.fwd_mask_info, visible.tile, q):
            return jax.vmap(kernel)(q, k, v, ids)

    q = _heads_first(own(_scaled(q, scale)))
    keys, values = _heads_first(all_keys(*k)), _heads_first(all_keys(*v))
    segments = all_keys(*real).astype(jnp.int32)  # padding sees padding
    out = _by_device(on_a_device, N, keys.shape[1])(q, keys, values, segments)
    return _heads_first(out).reshape(B, G, -1, N, H)[:, :, :C]


def packed_attention(
    q: Float[Array, "R T N H"],
    k: Float[Array, "R T K H"],
    v: Float[Array, "R T K H"],
    segment: Int[Array, "R T"],
    parent: Int[Array, "R T"],
    *,
    scale: float,
    interpret: bool,
) -> Float[Array, "R T N H"]:
    """Attention of rows as packing.py fills them, T at most `MOST_PACKED`.

    A common beginning and all texts that share it are one family: a segment of the
    kernel. There a token sees the beginning, and its own segment up to itself. The
    three places that define this are packed into one number a token.
    """
    tokens, T = padded(q.shape[1]), q.shape[1]
    tile = Visible(0, 1, tokens, 0).tile

    def whole(x: Array, value: int = 0) -> Array:  # padding comes after
        rest = ((0, 0),) * (x.ndim - 2)
        return jnp.pad(x, ((0, 0), (0, tokens - T), *rest), constant_values=value)

    def on_a_device(q: Array, k: Array, v: Array, rows: tuple[Array, Array]) -> Array:
        by_queries, by_keys = _causal_tables(tokens, q.shape[1])

        def one(q: Array, k: Array, v: Array, family: Array, places: Array) -> Array:
            tables = [t._replace(q_sequence=places) for t in (by_queries, by_keys)]
            kernel = _kernel(tables[0], tables[1], _sees, tile, interpret)
            ids = splash_attention_kernel.SegmentIds(family, family)
            return kernel(q, k, v, ids)

        with _flops_in_name(by_queries, tile, q):
            return jax.vmap(one)(q, k, v, *rows)

    segment, parent = whole(segment, -1), whole(parent, -1)
    q, k, v = (_heads_first(whole(x)) for x in (_scaled(q, scale), k, v))
    run = _by_device(on_a_device, q.shape[1], k.shape[1])
    return _heads_first(run(q, k, v, (parent, _places(segment, parent))))[:, :T]


def _places(segment: Int[Array, "R T"], parent: Int[Array, "R T"]) -> Int[Array, "R T"]:
    """For each slot: its number, the start of its segment, and the end of its family's
    beginning (0: none), packed."""
    slot = jnp.arange(segment.shape[1], dtype=jnp.int32)[None]
    same = segment[:, None, :] == segment[:, :, None]
    above = segment[:, None, :] == parent[:, :, None]
    first = jnp.argmax(same, axis=-1)
    end = jnp.max(jnp.where(above, slot[:, None] + 1, 0), axis=-1)
    end = jnp.where(parent == segment, 0, end)
    return ((slot << BITS | first) << BITS | end).astype(jnp.int32)


def _sees(places: Array, key: Array) -> Array:
    """Whether a query, by its `_places`, sees a slot of its family."""
    low = MOST_PACKED - 1
    slot, first, end = places >> (2 * BITS), (places >> BITS) & low, places & low
    return (key <= slot) & ((key >= first) | (key < end))


# --- shared by both


def _heads_first(x: Array) -> Array:
    """[B T N H] <-> [B N T H]."""
    return jnp.swapaxes(x, 1, 2)


def _scaled(q: Array, scale: float) -> Array:
    """q times the scale in float32, which may spare a rounding of RoPE's result."""
    return (q.astype(jnp.float32) * scale).astype(q.dtype)


def _flops_in_name(tables: Any, T: int, q: Float[Array, "B N T H"]) -> Any:
    """Puts the FLOPs of one of the kernel's products into its name: the compiled text
    says nothing else about them (runtime/hlo)."""
    tiles = np.count_nonzero(tables.block_mask)
    return jax.named_scope(f"flops_{2 * tiles * T**2 * (q.size // q.shape[2])}")


def _by_device(kernel: Any, heads: int, kv_heads: int) -> Any:
    """Runs the kernel on each device's part: the compiler cannot split a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel
    parts = mesh.shape["tensor"]
    split = kv_heads % parts == 0
    # one key head is shared by all query heads, on every device
    split_q = heads % parts == 0 and (split or kv_heads == 1)
    q = PartitionSpec(*BATCH, "tensor" if split_q else None)
    kv = PartitionSpec(*BATCH, "tensor" if split else None)
    return jax.shard_map(
        kernel, in_specs=(q, kv, kv, BATCH), out_specs=q, check_vma=False
    )
