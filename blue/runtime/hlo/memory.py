"""Bytes that a compiled program moves in a chip's main memory, and its largest arrays.

Arrays in a TPU's on-chip memory, S(1) and above in a layout, are omitted.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from blue.runtime.hlo.text import (
    SECOND_PARTS,
    Instruction,
    Module,
    arrays,
    bits_of,
    callees,
    op_name,
    operands,
    padded_bytes,
    parse,
    shape_bytes,
    trip_count,
)

# Instructions whose result has no memory of its own.
NO_BUFFER = {"parameter", "tuple", "get-tuple-element", "bitcast", "while", "call"}
NO_BUFFER |= {"conditional", "optimization-barrier", "after-all", "constant"}


# Instructions that move nothing; computations that they call do.
_FREE = NO_BUFFER | {"partition-id", "replica-id", "iota", *SECOND_PARTS}
_SLICES = {"dynamic-slice", "slice", "gather"}
_SAME = {"bitcast", "get-tuple-element"}


class Buffer(NamedTuple):
    """One of the largest arrays of a chip's program."""

    name: str  # the argument, or the operation that makes it
    shape: str  # such as bf16[16,2048,6912]
    bytes: int  # with the padding of its tiles


def memory_bytes(text: str, *, a_turn: bool = False) -> int | float:
    """Bytes that a chip reads from and writes to its main memory.

    Loops count as often as they run; if the text does not show it, as one turn.
    `a_turn`: only those of one turn of such loops. Operands and results of every
    instruction count, except inside fusions. Of an array that is only sliced, or
    updated in place, the slice counts. `cost_analysis` also counts on-chip memory, S(1)
    and above, and a loop only once.
    """
    module = parse(text)
    done: dict[str, int | float] = {}
    open_ended: list[str] = []

    def of(computation: str) -> int | float:
        if computation not in done:
            siblings = {i.name: i for i in module.computations.get(computation, [])}
            total: int | float = 0
            for i in siblings.values():
                called = [name for _, name in callees(i)]
                if i.opcode == "while":
                    turns = trip_count(module, i, siblings)
                    open_ended.extend([] if turns else called)
                    total += (turns or 1) * sum(map(of, called))
                elif i.opcode in ("call", "conditional", "async-start"):
                    total += sum(map(of, called))
                else:
                    total += _moved(module, i, siblings)
            done[computation] = total
        return done[computation]

    whole = of(module.entry)
    return sum(done[name] for name in open_ended) if a_turn else whole


def _main(shape: str) -> int:
    """Bytes of the arrays of a shape that are in main memory."""
    far = [a for a in arrays(shape) if not re.search(r"S\([1-9]", a.layout)]
    return sum(-(-bits_of(a.dtype) * math.prod(a.dims) // 8) for a in far)


def _moved(module: Module, i: Instruction, siblings: Mapping[str, Instruction]) -> int:
    """Bytes that one instruction reads and writes."""
    if i.opcode in _FREE or i.opcode.endswith("-start"):
        return 0
    inputs = [siblings[n] for n in operands(i) if n in siblings]
    if i.opcode.endswith("-done"):  # reads the start's operands
        start = inputs[0] if inputs else i
        inputs = [siblings[n] for n in operands(start) if n in siblings]
        return _main(i.shape) + sum(_main(x.shape) for x in inputs)
    if i.opcode in _SLICES:
        return (_main(inputs[0].shape) > 0) * shape_bytes(i.shape) + _main(i.shape)
    if i.opcode in ("dynamic-update-slice", "scatter"):
        new = shape_bytes(inputs[1 if i.opcode != "scatter" else 2].shape)
        return (1 + (_main(i.shape) > 0)) * new
    called = [name for attribute, name in callees(i) if attribute == "calls"]
    if i.opcode != "fusion" or not called:
        return _main(i.shape) + sum(_main(x.shape) for x in inputs)
    read = (
        min(_main(x.shape), _read(module, called[0], n)) for n, x in enumerate(inputs)
    )
    return sum(read) + min(_main(i.shape), _written(module, called[0]))


def _read(module: Module, computation: str, index: int) -> int:
    """Bytes that a fusion reads of its parameter `index`."""
    body = {i.name: i for i in module.computations.get(computation, [])}
    start = _parameter(body, index)
    if start is None:
        return 0
    total, names = 0, [start.name]
    while names:
        name = names.pop()
        if body[name].root:
            return shape_bytes(start.shape)
        for user in body.values():
            for place, operand in enumerate(operands(user)):
                if operand != name:
                    continue
                if user.opcode in _SAME or _passes_on(module, user, place):
                    names.append(user.name)
                elif user.opcode in _SLICES and place == 0:
                    total += shape_bytes(user.shape)
                elif user.opcode == "fusion":
                    total += _read(module, dict(callees(user))["calls"], place)
                elif user.opcode == "dynamic-update-slice" and place == 0:
                    continue  # in place
                else:
                    return shape_bytes(start.shape)
    return total


def _parameter(body: Mapping[str, Instruction], index: int) -> Instruction | None:
    is_it = lambda i: i.opcode == "parameter" and i.rest.startswith(f"({index})")
    return next((i for i in body.values() if is_it(i)), None)


def _passes_on(module: Module, fusion: Instruction, index: int) -> bool:
    """Whether a fusion's result is its parameter, perhaps in another shape."""
    if fusion.opcode != "fusion":
        return False
    called = dict(callees(fusion))["calls"]
    body = {i.name: i for i in module.computations.get(called, [])}
    at = next((i for i in body.values() if i.root), None)
    while at is not None and at.opcode in _SAME:
        at = body.get(operands(at)[0])
    return at is not None and at == _parameter(body, index)


def _written(module: Module, computation: str, name: str = "") -> int:
    """Bytes that a fusion writes, or its instruction `name`."""
    body = {i.name: i for i in module.computations.get(computation, [])}
    root = body.get(name) or next(i for i in body.values() if i.root)
    if root.opcode == "tuple":
        return sum(_written(module, computation, n) for n in operands(root))
    if root.opcode == "bitcast" and operands(root)[0] in body:
        return _written(module, computation, operands(root)[0])
    if root.opcode == "dynamic-update-slice":
        return shape_bytes(body[operands(root)[1]].shape)
    if root.opcode == "fusion":
        return _written(module, dict(callees(root))["calls"])
    return shape_bytes(root.shape)


def biggest_buffers(text: str, count: int = 8) -> list[Buffer]:
    """The largest arrays in a chip's main memory, one a shape, largest first.

    Arguments have their names, others that of the operation that makes them. The list
    has candidates, not allocations. Two of them may use the same memory in turn, and
    one shape may exist several times. Arrays inside fusions and in on-chip memory (S(1)
    and above) are omitted.
    """
    module = parse(text)
    fused = {
        called
        for instructions in module.computations.values()
        for i in instructions
        for attribute, called in callees(i)
        if i.opcode == "fusion" or attribute == "to_apply" and i.opcode != "call"
    }
    found: dict[str, tuple[int, Buffer]] = {}  # shape -> rank of the name, buffer
    for computation, instructions in module.computations.items():
        if computation in fused:
            continue
        for i in instructions:
            argument = i.opcode == "parameter" and computation == module.entry
            if i.opcode in NO_BUFFER and not argument or i.opcode.endswith("-start"):
                continue  # the result of a start includes its operand
            rank = 2 * argument + bool(op_name(i))
            for array in arrays(i.shape):
                if re.search(r"S\([1-9]", array.layout):
                    continue
                shape = f"{array.dtype}[{','.join(map(str, array.dims))}]"
                new = Buffer(op_name(i) or i.name, shape, padded_bytes(array))
                best = found.get(shape, (-1, new))
                size = max(new.bytes, best[1].bytes)
                name = max(best, (rank, new), key=lambda x: x[0])
                found[shape] = (name[0], name[1]._replace(bytes=size))
    return sorted((b for _, b in found.values()), key=lambda b: -b.bytes)[:count]
