"""Flags of XLA that differ from its defaults, each with its reason.

Set before jax starts; a flag that the user gave keeps its value. XLA ends a process
that has an unknown flag, so only tried flags are here (GPU flags with jaxlib 0.10.2).
`xla_flags=False` sets none. None was timed: no device was available.

For TPUs there is none. The latency-hiding scheduler and asynchronous collectives are on
by default: set to true, the compiled programs are the same. Two flags in
LIBTPU_INIT_ARGS fuse gathers with products:

    --xla_enable_async_all_gather=true
    --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true

They take 6% more memory and far longer to compile. They may be faster: time them.
"""

import importlib.metadata
from collections.abc import Mapping, MutableMapping
from typing import NamedTuple


class Flag(NamedTuple):
    """A flag, its value, and why."""

    name: str
    value: str
    reason: str


VARIABLE = {"tpu": "LIBTPU_INIT_ARGS", "gpu": "XLA_FLAGS"}  # what XLA reads them from
FLAGS = {
    "tpu": (),
    "gpu": (
        Flag(
            "--xla_gpu_enable_latency_hiding_scheduler",
            "true",
            "collectives of several GPUs run beside computation; off by default",
        ),
    ),
}
PLUGINS = {  # packages that add a platform to jax
    "tpu": ("libtpu",),
    "gpu": ("jax-cuda12-plugin", "jax-cuda13-plugin"),
}


def platform_of(environment: Mapping[str, str]) -> str:
    """tpu, gpu, or "": the platform that jax will find, without importing jax."""
    asked = environment.get("JAX_PLATFORMS", "").split(",")[0]
    asked = "gpu" if asked == "cuda" else asked
    for platform, packages in PLUGINS.items():
        if asked in ("", platform) and any(map(is_installed, packages)):
            return platform
    return ""


def is_installed(package: str) -> bool:
    """Whether a distribution of this name is installed; does not import it."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def set_for(platform: str, environment: MutableMapping[str, str]) -> list[str]:
    """Adds the flags of `platform` that the user did not give; returns the new ones."""
    if platform not in FLAGS:
        return []
    given = environment.get(VARIABLE[platform], "").split()
    names = {flag.partition("=")[0] for flag in given}
    new = [f"{f.name}={f.value}" for f in FLAGS[platform] if f.name not in names]
    environment[VARIABLE[platform]] = " ".join(given + new)
    return new
