"""Collectives of a compiled program: which, how often, how many bytes.

A collective is counted once for every place that calls it.

The TPU compiler adds loops. A product with a gathered or scattered matrix may become a
"windowed" loop of collective-permutes and small products. `cost_analysis` counts one
turn of it. The option xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000 prevents
this.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from blue.runtime.hlo.text import (
    SECOND_PARTS,
    Instruction,
    Module,
    callees,
    op_name,
    operands,
    parse,
    shape_bytes,
    trip_count,
)

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
# A ring sends a chip's array round twice: to reduce, then to gather.
PASSES = {"all-reduce": 2}


class Collective(NamedTuple):
    """One collective, at one place it is called from."""

    kind: str  # of KINDS
    bytes: int  # see `collective_totals`
    op_name: str  # its place in the Python program; may be empty
    times: int  # how often it runs; loops of unknown length count as one turn


def _collective(
    instruction: Instruction, siblings: Mapping[str, Instruction], times: int
) -> Collective | None:
    """The collective of one instruction. Of a pair, `-done` counts: the result of
    `-start` may include the operands."""
    kind = instruction.opcode.removesuffix("-done")
    if kind not in KINDS:
        return None
    size = shape_bytes(instruction.shape)
    if kind == "reduce-scatter":
        names = operands(instruction)
        if kind != instruction.opcode and names[0] in siblings:
            names = operands(siblings[names[0]])  # the start's
        found = (siblings[n].shape for n in names if n in siblings)
        size = sum(map(shape_bytes, found)) or size
    return Collective(kind, size, op_name(instruction), times)


def _is_reduce_scatter(module: Module, computation: str) -> bool:
    """Whether it is the TPU compiler's reduce-scatter: an all-reduce fused with the
    slice that a chip keeps, by its index."""
    made = {i.opcode for i in module.computations.get(computation, [])}
    return {"all-reduce", "partition-id", "dynamic-slice"} <= made


def _walk(module: Module, computation: str, times: int) -> Iterator[Collective]:
    siblings = {i.name: i for i in module.computations.get(computation, [])}
    for i in siblings.values():
        own = _collective(i, siblings, times)
        if own:
            yield own
            continue  # its to_apply adds two numbers
        if i.opcode in SECOND_PARTS or i.opcode.removesuffix("-start") in KINDS:
            continue
        turns = 1
        if i.opcode == "while":
            turns = trip_count(module, i, siblings) or 1
        for _, called in callees(i):
            scattered = i.opcode == "fusion" and _is_reduce_scatter(module, called)
            for one in _walk(module, called, times * turns):
                if scattered and one.kind == "all-reduce":
                    one = one._replace(kind="reduce-scatter")
                yield one._replace(op_name=one.op_name or op_name(i))


def collective_ops(text: str) -> list[Collective]:
    """Every collective that the entry computation reaches, in the order of the text."""
    module = parse(text)
    return list(_walk(module, module.entry, times=1))


def collective_totals(text: str) -> dict[str, dict[str, int]]:
    """{kind: {"count", "bytes"}} of a chip's program; kinds without any are omitted.

    bytes: of the whole array that takes part, on one chip, without layout padding. That
    is the *result* of an all-gather, all-reduce, all-to-all, collective-permute or
    ragged-all-to-all, and the *operand* of a reduce-scatter. So a gather and the
    scatter that is its gradient cost the same. A chip of a ring of n receives (n-1)/n
    of it, of an all-reduce twice that: `network_bytes`.

    Pairs of start and done count once, and a tuple's arrays are added up. Collectives
    in fusions, calls and asynchronous computations count where they are called from.
    All branches of a conditional count. Those in loops count as often as they run. A
    loop whose length the text does not show, such as a decode loop, counts as one turn.
    """
    totals: dict[str, dict[str, int]] = {}
    for op in collective_ops(text):
        row = totals.setdefault(op.kind, {"count": 0, "bytes": 0})
        row["count"] += op.times
        row["bytes"] += op.times * op.bytes
    return totals


def network_bytes(totals: dict[str, dict[str, Any]]) -> int | float:
    """Bytes a chip receives, at most: of `collective_totals`, all-reduces twice."""
    return sum(row["bytes"] * PASSES.get(kind, 1) for kind, row in totals.items())
