"""Which of jax's attention kernels serves a block of tokens.

Conditions are those of `jax.nn.dot_product_attention` with implementation="cudnn"
(jax 0.10.2), checked here beforehand because it raises where it cannot.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

HALF = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
AMPERE, HOPPER = (8, 0), (9, 0)


def attention_implementation(
    platform: str,
    compute_capability: tuple[int, int],
    num_devices: int,
    *,
    dtype: Any,
    head_size: int,
    query_tokens: int,
    key_tokens: int,
) -> Literal["cudnn"] | None:
    """The name "cudnn" where it can serve, forward and backward; else None, for XLA.

    platform: of the devices, "cuda" for NVIDIA's; compute_capability: (major, minor).
    """
    if platform != "cuda" or compute_capability < AMPERE:
        return None  # flash attention of cuDNN begins with Ampere
    if num_devices > 1:
        return None  # wants q, k and v sharded alike; one key head cannot be split
    if jnp.dtype(dtype) not in HALF:
        return None
    if head_size % 8 or head_size > (256 if compute_capability >= HOPPER else 128):
        return None  # 256 is Gemma 3's
    if query_tokens % 2 or key_tokens % 2:
        return None  # the mask becomes a bias, whose backward pass wants pairs
    return "cudnn"


def implementation_here(
    q: Float[Array, "B T N H"], k: Float[Array, "B S K H"]
) -> Literal["cudnn"] | None:
    """`attention_implementation` of these arrays on the devices of this process."""
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", "")  # TPUs and CPUs have none
    major, dot, minor = str(capability).partition(".")
    is_gpu = device.platform in ("gpu", "cuda")
    is_cuda = is_gpu and dot and major.isdigit() and minor.isdigit()
    return attention_implementation(
        "cuda" if is_cuda else device.platform,
        (int(major), int(minor)) if is_cuda else (0, 0),
        jax.device_count(),
        dtype=q.dtype,
        head_size=q.shape[-1],
        query_tokens=q.shape[1],
        key_tokens=k.shape[1],
    )
