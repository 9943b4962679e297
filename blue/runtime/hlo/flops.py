"""FLOPs of a compiled program's matrix products, loops as often as they run."""

import math
import re
from collections.abc import Mapping

from blue.runtime.hlo.text import (
    SECOND_PARTS,
    Instruction,
    arrays,
    callees,
    op_name,
    operands,
    parse,
    trip_count,
)

# models/splash.py puts the FLOPs of one of a kernel's matrix products into its name.
# The products of a tile: scores and outputs; scores again, gradients of weights and of
# queries; scores and gradients of weights again, gradients of keys and of values.
KERNEL = re.compile(r"/flops_(\d+)/.*/splash_mha_(fwd|dq|dkv)_")
KERNEL_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}


def _list(instruction: Instruction, name: str) -> list[int]:
    """Numbers of an attribute such as lhs_contracting_dims={1}; empty without it."""
    found = re.search(rf"\b{name}=\{{([\d,]*)\}}", instruction.rest)
    return [int(n) for n in found[1].split(",") if n] if found else []


def _valid_positions(window: Mapping[str, str], dim: int, n: int, out: int) -> int:
    """Pairs of an output position and a kernel position that meet an input element,
    along one spatial dimension of n elements. Holes and padding multiply nothing."""

    def at(name: str, default: str) -> str:
        return window[name].split("x")[dim] if name in window else default

    kernel, stride = int(at("size", "1")), int(at("stride", "1"))
    low = int(at("pad", "0_0").split("_")[0])
    holes, spread = int(at("lhs_dilate", "1")), int(at("rhs_dilate", "1"))
    count = 0
    for k in range(kernel):
        first = k * spread - low  # input position of output 0
        if stride % holes == 0 and first % holes:
            continue
        count += sum(
            (first + o * stride) % holes == 0 and first + o * stride < n * holes
            for o in range(max(0, -(first // stride)), out)
        )
    return count


def _product(
    instruction: Instruction, siblings: Mapping[str, Instruction]
) -> int | float:
    """FLOPs of one dot or convolution, as XLA counts them, or of a kernel with FLOPs in
    its name; 0 for anything else."""
    if instruction.opcode == "custom-call":
        found = KERNEL.search(op_name(instruction))
        return int(found[1]) * KERNEL_PRODUCTS[found[2]] if found else 0
    if instruction.opcode not in ("dot", "convolution"):
        return 0
    left = arrays(siblings[operands(instruction)[0]].shape)[0].dims
    out = arrays(instruction.shape)[0].dims
    if instruction.opcode == "dot":
        contracted = _list(instruction, "lhs_contracting_dims")
        return 2 * math.prod(out) * math.prod(left[d] for d in contracted)
    labels = re.search(r"dim_labels=(\w+)_\w+->(\w+)", instruction.rest)
    assert labels, instruction.name
    found = re.search(r"\bwindow=\{([^}]*)\}", instruction.rest)
    window = dict(part.split("=") for part in found[1].split()) if found else {}
    total = 2 * left[labels[1].index("b")] * left[labels[1].index("f")]
    total *= out[labels[2].index("f")]
    for group in ("feature_group_count", "batch_group_count"):
        found = re.search(rf"\b{group}=(\d+)", instruction.rest)
        total //= int(found[1]) if found else 1
    for dim in range(len(left) - 2):
        n, m = left[labels[1].index(str(dim))], out[labels[2].index(str(dim))]
        total *= _valid_positions(window, dim, n, m)
    return total


def product_flops(text: str) -> int | float:
    """FLOPs of a chip's matrix products (2 a multiply-add), those in loops as often as
    they run. A loop whose length the text does not show counts as one turn.

    Equals `cost_analysis` for a program without loops, except elementwise work. Kernels
    of models/splash.py (custom calls) count here, with the tiles they visit;
    `cost_analysis` counts none.
    """
    module = parse(text)
    done: dict[str, int | float] = {}

    def of(computation: str) -> int | float:
        if computation not in done:
            siblings = {i.name: i for i in module.computations.get(computation, [])}
            total = 0
            for i in siblings.values():
                total += _product(i, siblings)
                if i.opcode in SECOND_PARTS:
                    continue
                turns = 1
                if i.opcode == "while":
                    turns = trip_count(module, i, siblings) or 1
                total += turns * sum(of(called) for _, called in callees(i))
            done[computation] = total
        return done[computation]

    return of(module.entry)
