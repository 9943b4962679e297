"""What the text of a compiled XLA module tells: its collectives, loops and buffers.

`compiled.as_text()` is a chip's own program, after partitioning: every shape in it is
that of one chip. Each instruction is counted once for every place it is called from,
a loop's body once, unless a function says otherwise.

The TPU compiler makes loops of its own: a product with a gathered or scattered matrix
may become a "windowed" loop of collective-permutes and small products. `cost_analysis`
counts one turn of it. With the option
xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000 the compiler makes none.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
# Where a ring sends a chip's array round twice: reduced, then gathered.
PASSES = {"all-reduce": 2}

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
# models/splash.py says in the name of a kernel what one of its matrix products costs.
# Of a tile it makes: scores and outputs; scores again, gradients of weights and of
# queries; scores and gradients of weights again, gradients of keys and of values.
KERNEL = re.compile(r"/flops_(\d+)/.*/splash_mha_(fwd|dq|dkv)_")
KERNEL_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
# They name the computation that async-start has begun.
SECOND_PARTS = {"async-update", "async-done"}
# Instructions whose result is another's memory, or nobody's.
NO_BUFFER = {"parameter", "tuple", "get-tuple-element", "bitcast", "while", "call"}
NO_BUFFER |= {"conditional", "optimization-barrier", "after-all", "constant"}


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
    root: bool  # its result is the computation's


class Collective(NamedTuple):
    """One collective, at one place it is called from."""

    kind: str  # of KINDS
    bytes: int  # see `collectives`
    op_name: str  # where it comes from in the Python program; may be empty
    in_loop: bool  # reached through a while loop's body or condition
    times: int  # that it runs; loops of unknown length count as one turn


class Buffer(NamedTuple):
    """One of the largest arrays of a chip's program."""

    name: str  # the argument, or the operation that makes it
    shape: str  # such as bf16[16,2048,6912]
    bytes: int  # with the padding of its tiles


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
    """`SHAPE opcode(...` taken apart; layouts have parentheses, so they are matched."""
    end = _closing(line) if line.startswith("(") else line.find(" ")
    found = re.match(r"\s*([a-z][\w\-]*)(\(.*)$", line[end:], re.DOTALL)
    if not found:
        return None
    return Instruction(name, found[1], line[:end], found[2], root=False)


def _closing(text: str) -> int:
    """Where the parenthesis that `text` begins with has been closed."""
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


def _callees(instruction: Instruction) -> list[tuple[str, str]]:
    """(attribute, computation) of all that an instruction calls."""
    found = CALLED.findall(instruction.rest)
    for names in CALLED_LISTS.findall(instruction.rest):
        found += [("calls", n.strip().lstrip("%")) for n in names.split(",")]
    return found


def _op_name(instruction: Instruction) -> str:
    found = OP_NAME.search(instruction.rest)
    return re.sub(r"\\(.)", r"\1", found[1]) if found else ""


def _operands(instruction: Instruction) -> list[str]:
    """Names of the operands, whether or not the text repeats their shapes."""
    inside = instruction.rest[1 : _closing(instruction.rest) - 1]
    named = re.findall(r"%([\w.\-]+)", inside)
    return named or [n.strip() for n in inside.split(",") if n.strip()]


def _constant(name: str, siblings: Mapping[str, Instruction]) -> int | None:
    """The integer that a name stands for, through copies; None if it is computed."""
    while name in siblings and siblings[name].opcode in ("copy", "bitcast"):
        name = _operands(siblings[name])[0]
    if name not in siblings or siblings[name].opcode != "constant":
        return None
    found = re.match(r"\((-?\d+)\)", siblings[name].rest)
    return int(found[1]) if found else None


def _element(name: str, siblings: Mapping[str, Instruction]) -> int | None:
    """Which element of a loop's tuple a name is, through copies."""
    while name in siblings and siblings[name].opcode == "copy":
        name = _operands(siblings[name])[0]
    found = name in siblings and re.search(r"\bindex=(\d+)", siblings[name].rest)
    return int(found[1]) if found else None


def _trip_count(
    module: Module, loop: Instruction, siblings: Mapping[str, Instruction]
) -> int | None:
    """How often a loop runs, where the text says or shows it, as in `i < 26` with i
    from 0 in steps of 1. None for others, such as a loop until all are done."""
    said = TRIP_COUNT.search(loop.rest)
    if said:
        return int(said[1])
    called = dict(_callees(loop))
    condition, body = (
        {i.name: i for i in module.computations.get(called.get(part, ""), [])}
        for part in ("condition", "body")
    )
    tests = [i for i in condition.values() if i.root]
    if not tests or tests[0].opcode != "compare" or "direction=LT" not in tests[0].rest:
        return None
    counter, limit = _operands(tests[0])
    index, last = _element(counter, condition), _constant(limit, condition)
    starts = siblings.get(_operands(loop)[0])
    ends = next((i for i in body.values() if i.root), None)
    if index is None or not starts or not ends or starts.opcode != "tuple":
        return None
    first = _constant(_operands(starts)[index], siblings)
    added = body.get(_operands(ends)[index]) if ends.opcode == "tuple" else None
    if added is None or added.opcode != "add":
        return None
    steps = [_constant(n, body) for n in _operands(added)]
    step = next((n for n in steps if n), None)
    if first is None or last is None or not step:
        return None
    return max(0, -(-(last - first) // step))


def _collective(
    instruction: Instruction,
    siblings: Mapping[str, Instruction],
    in_loop: bool,
    times: int,
) -> Collective | None:
    """What one instruction itself moves. Of a pair, `-done` counts: its result is the
    collective's, while that of `-start` may hold the operands too."""
    kind = instruction.opcode.removesuffix("-done")
    if kind not in KINDS:
        return None
    size = shape_bytes(instruction.shape)
    if kind == "reduce-scatter":
        operands = _operands(instruction)
        if kind != instruction.opcode and operands[0] in siblings:
            operands = _operands(siblings[operands[0]])  # the start's
        found = (siblings[n].shape for n in operands if n in siblings)
        size = sum(map(shape_bytes, found)) or size
    return Collective(kind, size, _op_name(instruction), in_loop, times)


def _is_reduce_scatter(module: Module, computation: str) -> bool:
    """The TPU compiler's reduce-scatter: a fusion of an all-reduce and of the slice
    that a chip keeps, by its number, in one kernel."""
    made = {i.opcode for i in module.computations.get(computation, [])}
    return {"all-reduce", "partition-id", "dynamic-slice"} <= made


def _walk(
    module: Module, computation: str, in_loop: bool, times: int
) -> Iterator[Collective]:
    siblings = {i.name: i for i in module.computations.get(computation, [])}
    for i in siblings.values():
        own = _collective(i, siblings, in_loop, times)
        if own:
            yield own
            continue  # its to_apply adds two numbers
        if i.opcode in SECOND_PARTS or i.opcode.removesuffix("-start") in KINDS:
            continue
        loop = i.opcode == "while"
        turns = (_trip_count(module, i, siblings) or 1) if loop else 1
        for _, called in _callees(i):
            scattered = i.opcode == "fusion" and _is_reduce_scatter(module, called)
            for one in _walk(module, called, in_loop or loop, times * turns):
                if scattered and one.kind == "all-reduce":
                    one = one._replace(kind="reduce-scatter")
                yield one._replace(op_name=one.op_name or _op_name(i))


def collective_ops(text: str) -> list[Collective]:
    """Every collective that the entry computation reaches, in the order of the text."""
    module = parse(text)
    return list(_walk(module, module.entry, in_loop=False, times=1))


def _totals(ops: Iterable[Collective]) -> dict[str, dict[str, int]]:
    totals: dict[str, dict[str, int]] = {}
    for op in ops:
        row = totals.setdefault(op.kind, {"count": 0, "bytes": 0})
        row["count"] += 1
        row["bytes"] += op.bytes
    return totals


def collectives(text: str) -> dict[str, dict[str, int]]:
    """{kind: {"count", "bytes"}} of a chip's program; kinds it has not are left out.

    bytes: of the whole array that takes part, on one chip, without layout padding. That
    is the *result* of an all-gather, all-reduce, all-to-all, collective-permute or
    ragged-all-to-all, and the *operand* of a reduce-scatter. So a gather and the
    scatter that is its gradient cost the same. A chip of a ring of n receives (n-1)/n
    of it, of an all-reduce twice that: `network_bytes`.

    Pairs of start and done count once, and a tuple's arrays are added up. Collectives
    in fusions, calls and asynchronous computations count where they are called from.
    All branches of a conditional count, and a loop's body counts once.
    """
    return _totals(collective_ops(text))


def inside_loops(text: str) -> dict[str, dict[str, int]]:
    """`collectives`, of those alone that a while loop's body or condition reaches."""
    return _totals([op for op in collective_ops(text) if op.in_loop])


def repeated(text: str) -> dict[str, dict[str, int]]:
    """`collectives`, those in loops as often as they run. A loop whose length the text
    does not tell, such as a decode loop, counts as one turn."""
    ops = collective_ops(text)
    return _totals(one for one in ops for _ in range(one.times))


def network_bytes(totals: dict[str, dict[str, Any]]) -> int | float:
    """Bytes a chip receives, at most: of `collectives`, an all-reduce counted twice."""
    return sum(row["bytes"] * PASSES.get(kind, 1) for kind, row in totals.items())


def loops(text: str) -> list[int | None]:
    """One entry a while loop: how often it runs, None where the text does not tell.

    Text for CPUs says it of loops over a fixed range. That for TPUs does not, but shows
    where a counter begins, by how much it grows and what it is compared with.
    """
    module, found = parse(text), []
    for instructions in module.computations.values():
        siblings = {i.name: i for i in instructions}
        loops = (i for i in instructions if i.opcode == "while")
        found += [_trip_count(module, i, siblings) for i in loops]
    return found


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
    """FLOPs of one dot or convolution, as XLA counts them, or of a kernel that tells;
    0 for anything else."""
    if instruction.opcode == "custom-call":
        found = KERNEL.search(_op_name(instruction))
        return int(found[1]) * KERNEL_PRODUCTS[found[2]] if found else 0
    if instruction.opcode not in ("dot", "convolution"):
        return 0
    left = arrays(siblings[_operands(instruction)[0]].shape)[0].dims
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

    What `cost_analysis` would say of the same program without any loop, but for
    elementwise work. Of kernels that are no HLO (custom calls) those of
    models/splash.py count here, with the tiles that they visit, and none there.
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
                    turns = _trip_count(module, i, siblings) or 1
                total += turns * sum(of(called) for _, called in _callees(i))
            done[computation] = total
        return done[computation]

    return of(module.entry)


# Instructions that move nothing themselves; computations that they call do.
_FREE = NO_BUFFER | {"partition-id", "replica-id", "iota", *SECOND_PARTS}
_SLICES = {"dynamic-slice", "slice", "gather"}
_SAME = {"bitcast", "get-tuple-element"}


def memory_bytes(text: str, *, a_turn: bool = False) -> int | float:
    """Bytes that a chip reads from and writes to its main memory, loops as often as
    they run. A loop whose length the text does not show counts as one turn. `a_turn`:
    those of one turn of such loops alone.

    Operands and results of every instruction, those inside of a fusion left out. Of an
    array that is only sliced, or updated in place, the slice counts. What lies in the
    TPU's on-chip memory, S(1) and above, is not main memory: `cost_analysis`, which
    counts a loop once, counts that too.
    """
    module = parse(text)
    done: dict[str, int | float] = {}
    open_ended: list[str] = []

    def of(computation: str) -> int | float:
        if computation not in done:
            siblings = {i.name: i for i in module.computations.get(computation, [])}
            total: int | float = 0
            for i in siblings.values():
                called = [name for _, name in _callees(i)]
                if i.opcode == "while":
                    turns = _trip_count(module, i, siblings)
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
    """Bytes of the arrays of a shape that lie in main memory."""
    far = [a for a in arrays(shape) if not re.search(r"S\([1-9]", a.layout)]
    return sum(-(-bits_of(a.dtype) * math.prod(a.dims) // 8) for a in far)


def _moved(module: Module, i: Instruction, siblings: Mapping[str, Instruction]) -> int:
    """Bytes that one instruction reads and writes."""
    if i.opcode in _FREE or i.opcode.endswith("-start"):
        return 0
    inputs = [siblings[n] for n in _operands(i) if n in siblings]
    if i.opcode.endswith("-done"):  # a start's operands are read, its result written
        start = inputs[0] if inputs else i
        inputs = [siblings[n] for n in _operands(start) if n in siblings]
        return _main(i.shape) + sum(_main(x.shape) for x in inputs)
    if i.opcode in _SLICES:
        return (_main(inputs[0].shape) > 0) * shape_bytes(i.shape) + _main(i.shape)
    if i.opcode in ("dynamic-update-slice", "scatter"):
        new = shape_bytes(inputs[1 if i.opcode != "scatter" else 2].shape)
        return (1 + (_main(i.shape) > 0)) * new
    called = [name for attribute, name in _callees(i) if attribute == "calls"]
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
            for place, operand in enumerate(_operands(user)):
                if operand != name:
                    continue
                if user.opcode in _SAME or _passes_on(module, user, place):
                    names.append(user.name)
                elif user.opcode in _SLICES and place == 0:
                    total += shape_bytes(user.shape)
                elif user.opcode == "fusion":
                    total += _read(module, dict(_callees(user))["calls"], place)
                elif user.opcode == "dynamic-update-slice" and place == 0:
                    continue  # in place
                else:
                    return shape_bytes(start.shape)
    return total


def _parameter(body: Mapping[str, Instruction], index: int) -> Instruction | None:
    is_it = lambda i: i.opcode == "parameter" and i.rest.startswith(f"({index})")
    return next((i for i in body.values() if is_it(i)), None)


def _passes_on(module: Module, fusion: Instruction, index: int) -> bool:
    """Whether a fusion's result is its parameter, in another shape at most."""
    if fusion.opcode != "fusion":
        return False
    called = dict(_callees(fusion))["calls"]
    body = {i.name: i for i in module.computations.get(called, [])}
    at = next((i for i in body.values() if i.root), None)
    while at is not None and at.opcode in _SAME:
        at = body.get(_operands(at)[0])
    return at is not None and at == _parameter(body, index)


def _written(module: Module, computation: str, name: str = "") -> int:
    """Bytes that a fusion writes, or of them the instruction `name` does."""
    body = {i.name: i for i in module.computations.get(computation, [])}
    root = body.get(name) or next(i for i in body.values() if i.root)
    if root.opcode == "tuple":
        return sum(_written(module, computation, n) for n in _operands(root))
    if root.opcode == "bitcast" and _operands(root)[0] in body:
        return _written(module, computation, _operands(root)[0])
    if root.opcode == "dynamic-update-slice":
        return shape_bytes(body[_operands(root)[1]].shape)
    if root.opcode == "fusion":
        return _written(module, dict(_callees(root))["calls"])
    return shape_bytes(root.shape)


def biggest_buffers(text: str, count: int = 8) -> list[Buffer]:
    """The largest arrays in a chip's main memory, one a shape, largest first.

    Arguments go by their names, others by the operation that makes them. It is a list
    of candidates, not an allocation. Two of them may take turns in the same memory,
    and one shape may be there several times. Arrays inside fusions never exist, and
    those in a TPU's on-chip memory (S(1) and above) are left out.
    """
    module = parse(text)
    fused = {
        called
        for instructions in module.computations.values()
        for i in instructions
        for attribute, called in _callees(i)
        if i.opcode == "fusion" or attribute == "to_apply" and i.opcode != "call"
    }
    found: dict[str, tuple[int, Buffer]] = {}  # with how good its name is
    for computation, instructions in module.computations.items():
        if computation in fused:
            continue
        for i in instructions:
            argument = i.opcode == "parameter" and computation == module.entry
            if i.opcode in NO_BUFFER and not argument or i.opcode.endswith("-start"):
                continue  # the result of a start is its operand beside what is done's
            rank = 2 * argument + bool(_op_name(i))
            for array in arrays(i.shape):
                if re.search(r"S\([1-9]", array.layout):
                    continue
                shape = f"{array.dtype}[{','.join(map(str, array.dims))}]"
                new = Buffer(_op_name(i) or i.name, shape, padded_bytes(array))
                best = found.get(shape, (-1, new))
                size = max(new.bytes, best[1].bytes)
                name = max(best, (rank, new), key=lambda x: x[0])
                found[shape] = (name[0], name[1]._replace(bytes=size))
    return sorted((b for _, b in found.values()), key=lambda b: -b.bytes)[:count]
