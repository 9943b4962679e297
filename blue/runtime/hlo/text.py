"""Parses the text of a compiled XLA module: computations, instructions, shapes, loops.

`compiled.as_text()` is a chip's own program, after partitioning: every shape in it is
that of one chip.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

# bits of the types whose name does not end in their number of bits
BITS = {"pred": 8, "token": 0, "opaque": 0}
COMMENT = re.compile(r"/\*.*?\*/")
COMPUTATION = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s*\(.*\{\s*$")
INSTRUCTION = re.compile(r"^\s+(ROOT\s+)?%?([\w.\-]+)\s+=\s+(.*)$")
ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=\s]*)\](?:\{([^}]*)\})?")
CALLED = re.compile(
    r"[\s,](body|condition|calls|to_apply|true_computation|false_computation)="
    r"%?([\w.\-]+)"
)
CALLED_LISTS = re.compile(
    r"[\s,](?:branch_computations|called_computations|calls)=\{([^}]*)\}"
)
OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# They name the computation that async-start began.
SECOND_PARTS = {"async-update", "async-done"}


class Array(NamedTuple):
    """One array of a shape as the text writes it."""

    dtype: str
    dims: tuple[int, ...]
    layout: str  # between the braces: `1,0:T(8,128)(2,1)S(1)`


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    opcode: str
    shape: str  # of the result, a tuple's in parentheses
    rest: str  # what follows the opcode: operands and attributes
    root: bool  # its result is that of the computation


class Module(NamedTuple):
    """A compiled module, read."""

    entry: str
    computations: dict[str, list[Instruction]]


def parse(text: str) -> Module:
    """The computations of a module's text. Raises ValueError if it has no entry."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", []
    text = re.sub(r'\n(?="|}})', " ", text)  # a kernel's metadata is several lines
    for line in text.splitlines():
        if not line.startswith(" "):
            found = COMPUTATION.match(line)
            if found:
                current = computations.setdefault(found[2], [])
                entry = found[2] if found[1] else entry
            continue
        found = INSTRUCTION.match(line)
        if found:
            instruction = _instruction(found[2], COMMENT.sub("", found[3]))
            if instruction:
                current.append(instruction._replace(root=bool(found[1])))
    if not entry:
        raise ValueError("no ENTRY computation: not the text of a compiled module")
    return Module(entry, computations)


def _instruction(name: str, line: str) -> Instruction | None:
    """Parses `SHAPE opcode(...`; layouts contain parentheses, so these are matched."""
    end = _closing(line) if line.startswith("(") else line.find(" ")
    found = re.match(r"\s*([a-z][\w\-]*)(\(.*)$", line[end:], re.DOTALL)
    if not found:
        return None
    return Instruction(name, found[1], line[:end], found[2], root=False)


def _closing(text: str) -> int:
    """The place after the parenthesis that closes the first one of `text`."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return at + 1
    return len(text)


def arrays(shape: str) -> list[Array]:
    """All arrays of a shape, nested tuples flattened."""
    found = ARRAY.findall(COMMENT.sub("", shape))
    dims = lambda text: tuple(int(d.strip(" <=")) for d in text.split(",") if d.strip())
    return [Array(dtype, dims(size), layout) for dtype, size, layout in found]


def bits_of(dtype: str) -> int:
    """Bits an element: bf16 16, f8e4m3fn 8, s4 4, pred 8. Raises ValueError."""
    if dtype in BITS:
        return BITS[dtype]
    found = re.match(r"^(?:bf|f|s|u|c)(\d+)(?:e\d+m\d+\w*)?$", dtype)
    if not found:
        raise ValueError(f"element type {dtype!r} is not known")
    return int(found[1])


def shape_bytes(shape: str) -> int:
    """Bytes of the elements of a shape, tuples added up, padding left out."""
    bits = (bits_of(a.dtype) * math.prod(a.dims) for a in arrays(shape))
    return sum(-(-b // 8) for b in bits)


def padded_bytes(array: Array) -> int:
    """Bytes an array takes in memory, its minor dimensions filled up to whole tiles."""
    order, _, rest = array.layout.partition(":")
    dims = list(array.dims)
    minor_first = [int(i) for i in order.split(",") if i.strip().isdigit()]
    tile = re.match(r"T\(([\d,]+)\)", rest)
    if tile and len(minor_first) == len(dims):
        sizes = [int(s) for s in tile[1].split(",")]
        # a tile of more dimensions than the array: the missing ones have size 1
        for dim, size in zip(minor_first, reversed(sizes), strict=False):
            dims[dim] = -(-dims[dim] // size) * size
        missing = sizes[: max(0, len(sizes) - len(dims))]
        dims += missing
    return -(-bits_of(array.dtype) * math.prod(dims) // 8)


def callees(instruction: Instruction) -> list[tuple[str, str]]:
    """(attribute, computation) of each computation that an instruction calls."""
    found = CALLED.findall(instruction.rest)
    for names in CALLED_LISTS.findall(instruction.rest):
        found += [("calls", n.strip().lstrip("%")) for n in names.split(",")]
    return found


def op_name(instruction: Instruction) -> str:
    """Its place in the Python program; may be empty."""
    found = OP_NAME.search(instruction.rest)
    return re.sub(r"\\(.)", r"\1", found[1]) if found else ""


def operands(instruction: Instruction) -> list[str]:
    """Names of the operands, whether or not the text repeats their shapes."""
    inside = instruction.rest[1 : _closing(instruction.rest) - 1]
    named = re.findall(r"%([\w.\-]+)", inside)
    return named or [n.strip() for n in inside.split(",") if n.strip()]


def _constant(name: str, siblings: Mapping[str, Instruction]) -> int | None:
    """The constant that a name refers to, through copies; None if it is computed."""
    while name in siblings and siblings[name].opcode in ("copy", "bitcast"):
        name = operands(siblings[name])[0]
    if name not in siblings or siblings[name].opcode != "constant":
        return None
    found = re.match(r"\((-?\d+)\)", siblings[name].rest)
    return int(found[1]) if found else None


def _element(name: str, siblings: Mapping[str, Instruction]) -> int | None:
    """Which element of a loop's tuple a name is, through copies."""
    while name in siblings and siblings[name].opcode == "copy":
        name = operands(siblings[name])[0]
    found = name in siblings and re.search(r"\bindex=(\d+)", siblings[name].rest)
    return int(found[1]) if found else None


def trip_count(
    module: Module, loop: Instruction, siblings: Mapping[str, Instruction]
) -> int | None:
    """How often a loop runs, if the text shows it, as in `i < 26` with i from 0 in
    steps of 1. None for others, such as a loop until all rows are done."""
    said = TRIP_COUNT.search(loop.rest)
    if said:
        return int(said[1])
    called = dict(callees(loop))
    condition, body = (
        {i.name: i for i in module.computations.get(called.get(part, ""), [])}
        for part in ("condition", "body")
    )
    tests = [i for i in condition.values() if i.root]
    if not tests or tests[0].opcode != "compare" or "direction=LT" not in tests[0].rest:
        return None
    counter, limit = operands(tests[0])
    index, last = _element(counter, condition), _constant(limit, condition)
    starts = siblings.get(operands(loop)[0])
    ends = next((i for i in body.values() if i.root), None)
    if index is None or not starts or not ends or starts.opcode != "tuple":
        return None
    first = _constant(operands(starts)[index], siblings)
    added = body.get(operands(ends)[index]) if ends.opcode == "tuple" else None
    if added is None or added.opcode != "add":
        return None
    steps = [_constant(n, body) for n in operands(added)]
    step = next((n for n in steps if n), None)
    if first is None or last is None or not step:
        return None
    return max(0, -(-(last - first) // step))
