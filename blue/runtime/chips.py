"""Peak arithmetic, memory and network of chips, and the roofline of a program.

Peaks are those of the vendors' pages; no program reaches them.
"""

from typing import NamedTuple

GB, GIB = 1e9, 2**30


class Chip(NamedTuple):
    """Peaks of one chip; 0 where there is none."""

    name: str
    kind: str  # `device_kind` in JAX
    flops: float  # bf16 FLOP/s, dense
    hbm_bytes: float  # that a program can use
    hbm_bandwidth: float  # bytes/s
    network_bandwidth: float  # bytes/s that a chip receives, over all its links


# HBM of TPUs: the compiler's limit ("Used 61.36G of 31.25G hbm"), which is below the
# nominal size. Network: the pages give Gbit/s one way (1600, 4800, 3200), or twice that
# in GB/s for both ways.
CHIPS = (
    # https://cloud.google.com/tpu/docs/v5e
    Chip("v5e", "TPU v5 lite", 197e12, 15.75 * GIB, 819 * GB, 200 * GB),
    # https://cloud.google.com/tpu/docs/v5p
    Chip("v5p", "TPU v5", 459e12, 95.74 * GIB, 2765 * GB, 600 * GB),
    # https://cloud.google.com/tpu/docs/v6e
    Chip("v6e", "TPU v6 lite", 918e12, 31.25 * GIB, 1638 * GB, 400 * GB),
    # https://www.nvidia.com/en-us/data-center/h100/ (SXM; NVLink 900 GB/s both ways)
    Chip("h100", "NVIDIA H100 80GB HBM3", 989e12, 80 * GB, 3350 * GB, 450 * GB),
    # https://www.nvidia.com/en-us/data-center/h200/
    Chip("h200", "NVIDIA H200", 989e12, 141 * GB, 4800 * GB, 450 * GB),
)
BY_NAME = {chip.name: chip for chip in CHIPS}
BY_KIND = {chip.kind: chip for chip in CHIPS}


class Roofline(NamedTuple):
    """The least seconds of a program, by compute, memory and network."""

    compute: float
    memory: float
    network: float

    @property
    def bound(self) -> str:
        """The largest of the three: compute, memory or network."""
        return max(self._fields, key=lambda name: getattr(self, name))

    @property
    def seconds(self) -> float:
        """The least time, if all three overlap fully."""
        return max(self)


def roofline(
    flops: int | float,
    hbm_bytes: int | float,
    network_bytes: int | float,
    chip: Chip,
) -> Roofline:
    """Times of a chip's part of a program: work over peak.

    flops, hbm_bytes (read and written) and network_bytes (received) are one chip's.
    Roofline model, Williams, Waterman and Patterson 2009,
    https://doi.org/10.1145/1498765.1498785, with the network as a third roof.
    """
    return Roofline(
        compute=flops / chip.flops,
        memory=hbm_bytes / chip.hbm_bandwidth,
        network=network_bytes / chip.network_bandwidth,
    )
