"""Attention on TPUs: jax's splash kernel over the tiles of a mask that never changes.

Prompts are right-aligned, so the distance between two slots is known before the program
runs: of prompt slot p and completion token c it is P - p + c. Causality and windows are
therefore a static mask (`Visible`); only padding is data, and goes in as segments. The
kernel computes the tiles of which something is visible, forward and backward, and no
[T, S] array of scores ever lies in main memory. Equal to the dense attention of
decoder.py to float tolerance, for every query that is no padding.

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
from jaxtyping import Array, Bool, Float

from blue.sharding import BATCH

LANES = 128  # tiles are multiples of it, and blocks of tokens padded to one
TILES = (512, 256, 128)  # queries and keys of a tile: the first that fits is taken
FEW_KEYS = 512  # with fewer, dense scores are small, and so would be the tiles
KEPT = "splash"  # what `jax.checkpoint` may keep for the backward kernels


def serves(head_size: int, query_tokens: int, key_tokens: int) -> bool:
    """Whether blocks are long enough for tiles: none of queries less than half full."""
    enough = key_tokens >= FEW_KEYS and query_tokens > LANES // 2
    return head_size % LANES == 0 and enough


@dataclasses.dataclass(frozen=True)
class Visible(splash_attention_mask.Mask):
    """Which keys a query sees: keys are a prompt and the tokens of all completions,
    queries the latter alone. A block of tokens by itself is one completion of nothing.
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
            return visible  # as most tiles: another completion's
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
    """(q [N T H], k [K S H], v, SegmentIds) -> [N T H]; `interpret`: without a TPU.

    As `make_splash_mha` builds it, but its tables stay in numpy: they are made while a
    program is traced, maybe for devices that are not there.
    """
    mask, T = splash_attention_mask.MultiHeadMask([visible] * heads), visible.tile
    shards = {"head_shards": 1, "q_seq_shards": 1}
    by_queries, _ = splash_attention_mask_info.process_mask(mask, (T, T), **shards)
    by_keys, _ = splash_attention_mask_info.process_mask_dkv(mask, (T, T), **shards)
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
        mask_function=None,
        interpret=interpret,
    )


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
    them are no padding. Rows lie on the mesh as `sharding.keep_rows` says; heads are
    split over `tensor` where they divide.
    """
    (B, G, C, N, H), P = q.shape, k[0].shape[1]
    visible = Visible(padded(P), G, padded(C), window)

    def own(x: Array) -> Array:  # padding comes after, where nobody looks
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
        # the compiled text says nothing else of a kernel's work: see hlo.py
        tiles = np.count_nonzero(kernel.fwd_mask_info.block_mask)
        work = 2 * tiles * visible.tile**2 * (q.size // q.shape[2])
        with jax.named_scope(f"flops_{work}"):  # of one product
            return jax.vmap(kernel)(q, k, v, ids)

    heads_first = lambda x: jnp.swapaxes(x, 1, 2)
    # in float32: the compiler may then leave out the rounding of what RoPE made
    q = heads_first(own((q.astype(jnp.float32) * scale).astype(q.dtype)))
    keys, values = heads_first(all_keys(*k)), heads_first(all_keys(*v))
    segments = all_keys(*real).astype(jnp.int32)  # padding sees padding
    out = _by_device(on_a_device, N, keys.shape[1])(q, keys, values, segments)
    return heads_first(out).reshape(B, G, -1, N, H)[:, :, :C]


def _by_device(kernel: Any, heads: int, kv_heads: int) -> Any:
    """The compiler cannot split a kernel: every device runs it on what it has."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel
    parts = mesh.shape["tensor"]
    split = kv_heads % parts == 0
    # one key head serves any part of the query heads
    split_q = heads % parts == 0 and (split or kv_heads == 1)
    q = PartitionSpec(*BATCH, "tensor" if split_q else None)
    kv = PartitionSpec(*BATCH, "tensor" if split else None)
    return jax.shard_map(
        kernel, in_specs=(q, kv, kv, BATCH), out_specs=q, check_vma=False
    )
