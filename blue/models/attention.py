"""Which of jax's attention kernels is used for a block of tokens.

On TPUs it is splash (splash.py) where blocks are long, on GPUs cuDNN's. Elsewhere
attention is dense (decoder.py); tests compare the kernels with it.

The conditions for cuDNN are those of `jax.nn.dot_product_attention` with
implementation="cudnn" (jax 0.10.2), which raises where they are not met.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from blue.models import splash

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
