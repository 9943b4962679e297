"""Attention: who sees whom, and how it is computed.

On TPUs a kernel computes it, splash (splash.py), where blocks are long; on GPUs it is
cuDNN's. Elsewhere attention is dense; tests compare the kernels with it. Nothing here
knows a model's config.

B prompts  G completions a prompt  P prompt tokens  C completion tokens  T query tokens
S key tokens  N query heads  K key/value heads  R = N//K query heads a key/value head
H head size

The conditions for cuDNN are those of `jax.nn.dot_product_attention` with
implementation="cudnn" (jax 0.10.2), which raises where they are not met.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from blue.models import splash

HALF = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
AMPERE, HOPPER = (8, 0), (9, 0)
LONG, PARTS = 512, 4  # dense attention splits LONG or more queries into PARTS
LOCAL_PART = 256  # local layers: max(window, LOCAL_PART) queries a part


class KV(NamedTuple):
    """Keys and values of one layer, after the key norm (if any) and RoPE."""

    k: Float[Array, "... S K H"]
    v: Float[Array, "... S K H"]


# attend(q [B T N H], own KV) -> (output [B T N H], what to keep of the keys and values)
# The output may have only the last positions; the layer's output has the same.
Attend = Callable[[Array, KV], tuple[Array, Any]]


# --- who sees whom


def positions_of(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Real positions under right alignment; padding gets 0."""
    return jnp.maximum(jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)


def causal_mask(
    query_positions: Int[Array, "*b T"],
    key_positions: Int[Array, "*b S"],
    *,
    window: int,
) -> Bool[Array, "*b T S"]:
    """True where a query may see a key; `window` 0 is unlimited."""
    back = query_positions[..., :, None] - key_positions[..., None, :]
    return (back >= 0) & (back < window) if window else back >= 0


def visible_parts(queries: int, keys: int, window: int) -> list[tuple[slice, slice]]:
    """Parts of the last `queries` of `keys` slots, each with the keys that some query
    of the part may see in `self_attention`."""
    before = keys - queries
    size = -(-queries // PARTS) if queries >= LONG else queries
    if window and queries >= LONG:
        size = min(size, max(window, LOCAL_PART))
    starts = range(0, queries, size)
    parts = [slice(start, min(start + size, queries)) for start in starts]
    first = lambda part: max(before + part.start - window + 1, 0) if window else 0
    return [(part, slice(first(part), before + part.stop)) for part in parts]


# --- attention


def self_attention(
    mask: Bool[Array, "B T S"], *, scale: float, window: int = 0
) -> Attend:
    """Attention inside one block of tokens; keeps its keys and values.

    mask: False for keys after the query, and for those `window` slots or more before it
    (0: no limit). Dense attention computes only the `visible_parts`.
    """

    def attend(q: Float[Array, "B T N H"], kv: KV) -> tuple[Array, KV]:
        is_cudnn = kernel_for(q, keys=kv.k.shape[1]) == "cudnn"
        whole = [(slice(None), slice(None))]
        parts = whole if is_cudnn else visible_parts(q.shape[1], kv.k.shape[1], window)
        out = [
            jax.nn.dot_product_attention(
                q[:, own], kv.k[:, seen], kv.v[:, seen],
                mask=mask[:, None, own, seen], scale=scale,
                implementation="cudnn" if is_cudnn else None,
            )
            for own, seen in parts
        ]  # fmt: skip
        return jnp.concatenate(out, axis=1) if len(out) > 1 else out[0], kv

    return attend


def splash_attention(
    q: Float[Array, "B G C N H"],
    prompt: KV,
    own: KV,
    prompt_mask: Bool[Array, "B P"],
    own_mask: Bool[Array, "B G C"],
    *,
    scale: float,
    window: int,
) -> Float[Array, "B G C N H"]:
    """`group_attention` by a kernel of TPUs: causal inside a completion, no further
    back than `window` (0: no limit), and nothing that is masked."""
    return splash.attention(
        q, (prompt.k, own.k), (prompt.v, own.v), (prompt_mask, own_mask),
        scale=scale, window=window, interpret=platform_here() != "tpu",
    )  # fmt: skip


def group_attention(
    q: Float[Array, "B G C N H"],
    prompt: KV,
    own: KV,
    prompt_mask: Bool[Array, "B G C P"],
    own_mask: Bool[Array, "#B #G C S"],
    *,
    scale: float,
) -> Float[Array, "B G C N H"]:
    """Completions attend to [their prompt's keys, their own keys].

    prompt: [B P K H], shared by the group; own: [B G S K H]. One softmax over both.
    """
    K, P = prompt.k.shape[-2], prompt.k.shape[1]
    q = q.reshape(*q.shape[:3], K, -1, q.shape[-1])  # [B G C K R H]
    f32 = {"preferred_element_type": jnp.float32}
    shared = jnp.einsum("BGCKRH,BPKH->BKRGCP", q, prompt.k, **f32)
    single = jnp.einsum("BGCKRH,BGSKH->BKRGCS", q, own.k, **f32)
    own_mask = jnp.broadcast_to(own_mask, (*q.shape[:3], own_mask.shape[-1]))
    mask = jnp.concatenate([prompt_mask, own_mask], axis=-1)[:, None, None]
    logits = jnp.concatenate([shared, single], axis=-1) * scale
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    probs = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    out = jnp.einsum("BKRGCP,BPKH->BGCKRH", probs[..., :P], prompt.v)
    out = out + jnp.einsum("BKRGCS,BGSKH->BGCKRH", probs[..., P:], own.v)
    return out.reshape(*out.shape[:3], -1, out.shape[-1])


def prompt_attention(mask: Bool[Array, "B T"], *, scale: float, window: int) -> Attend:
    """Causal attention over right-aligned tokens; padding is masked."""
    positions = positions_of(mask)
    see = causal_mask(positions, positions, window=window)
    dense = self_attention(see & mask[:, None, :], scale=scale, window=window)

    def attend(q: Array, kv: KV) -> tuple[Array, KV]:
        if kernel_for(q, keys=kv.k.shape[1]) != "splash":
            return dense(q, kv)
        nothing = KV(kv.k[:, :0], kv.v[:, :0])
        alone = KV(kv.k[:, None], kv.v[:, None])  # one completion
        masks = mask[:, :0], mask[:, None]
        sizes = {"scale": scale, "window": window}
        return splash_attention(q[:, None], nothing, alone, *masks, **sizes)[:, 0], kv

    return attend


# --- which kernel


def kernel_for(q: Float[Array, "*b T N H"], *, keys: int) -> str | None:
    """The kernel for such queries, each over `keys` keys; None: dense attention."""
    return implementation_here(
        dtype=q.dtype,
        head_size=q.shape[-1],
        query_tokens=q.shape[-3],
        key_tokens=keys,
    )


def attention_implementation(
    platform: str,
    compute_capability: tuple[int, int],
    num_devices: int,
    *,
    dtype: Any,
    head_size: int,
    query_tokens: int,
    key_tokens: int,
) -> Literal["cudnn", "splash"] | None:
    """The kernel to use, forward and backward; None: dense attention of XLA.

    platform: of the devices, "cuda" for NVIDIA's; compute_capability: (major, minor).
    """
    if platform == "tpu" and splash.fits_tiles(head_size, query_tokens, key_tokens):
        return "splash"
    if platform != "cuda" or compute_capability < AMPERE:
        return None  # cuDNN has flash attention since Ampere
    if num_devices > 1:
        return None  # needs q, k and v sharded alike; one key head cannot be split
    if jnp.dtype(dtype) not in HALF:
        return None
    if head_size % 8 or head_size > (256 if compute_capability >= HOPPER else 128):
        return None  # 256 is Gemma 3's
    if query_tokens % 2 or key_tokens % 2:
        return None  # the mask becomes a bias, whose backward pass needs even lengths
    return "cudnn"


def implementation_here(
    *, dtype: Any, head_size: int, query_tokens: int, key_tokens: int
) -> Literal["cudnn", "splash"] | None:
    """`attention_implementation` on the devices that a program is compiled for.

    Those of the mesh that is set, else those of this process. `plan` has none.
    """
    device = jax.devices()[0]
    platform = platform_here()
    capability = getattr(device, "compute_capability", "")  # TPUs and CPUs have none
    major, dot, minor = str(capability).partition(".")
    is_gpu = platform in ("gpu", "cuda")
    is_cuda = is_gpu and dot and major.isdigit() and minor.isdigit()
    return attention_implementation(
        "cuda" if is_cuda else platform,
        (int(major), int(minor)) if is_cuda else (0, 0),
        jax.device_count(),
        dtype=dtype,
        head_size=head_size,
        query_tokens=query_tokens,
        key_tokens=key_tokens,
    )


def platform_here() -> str:
    """The platform of the devices a program is compiled for, such as "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.devices()[0].platform
