"""plan.json in words: plan.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from blue.runtime.hlo.collectives import network_bytes

MISSING = "-"


def render(plan: Mapping[str, Any]) -> str:
    """Markdown of a plan: memory of a chip, cost of each program, estimated time of a
    step, and advice where something does not fit.

    Needs `topology`, `chips`, `hbm_gib_per_chip`, `resident_gib` and `programs`; any
    other missing value shows as "-" or omits its section.
    """
    parts = [
        _head(plan),
        _resident(plan),
        _memory(plan),
        _work(plan),
        _collectives(plan),
        _step(plan),
        _misfits(plan),
        _advice(plan),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _number(value: Any, unit: float = 1.0) -> str:
    """value / unit with three digits and no exponent: 0.00123, 4.56, 1234."""
    if value is None:
        return MISSING
    scaled = float(value) / unit
    if scaled != 0 and not 1e-4 <= abs(scaled) < 1e7:
        return f"{scaled:.2e}"
    text = f"{scaled:,.{0 if abs(scaled) >= 100 else 2}f}"
    return f"{scaled:.3g}" if 0 < abs(scaled) < 1 else text


def _seconds(value: Any) -> str:
    """A time in a unit that suits it: 1.23 s, 4.56 ms, 7.89 us."""
    if value is None:
        return MISSING
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{_number(value, size)} {unit}"
    return f"{_number(value, 1e-6)} us"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is text, the others are right-aligned numbers."""
    line = lambda cells: f"| {' | '.join(cells)} |"
    rule = ["---"] + ["---:"] * (len(names) - 1)
    return "\n".join([line(names), line(rule), *map(line, rows)])


def _by_program(plan: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return list(plan["programs"].items())


def _misfit_names(plan: Mapping[str, Any]) -> list[str]:
    return [n for n, p in _by_program(plan) if not p.get("fits", True)]


def _head(plan: Mapping[str, Any]) -> str:
    misfits = _misfit_names(plan)
    verdict = "Every program fits."
    if misfits:
        verdict = f"**Does not fit: {', '.join(misfits)}.**"
    hbm = _number(plan["hbm_gib_per_chip"])
    return (
        f"# Plan for {plan['topology']}\n\n{plan['chips']} chips of {hbm} GiB HBM. "
        f"{verdict}\n\nEverything below is for one chip, from the compiler; nothing "
        "was run. Times are work over the chip's peak. Its bytes are every operand and "
        "result that the compiler counts, wherever they lie, so that the time for "
        "memory is rather too long; the other two are too short."
    )


def _resident(plan: Mapping[str, Any]) -> str:
    resident = plan["resident_gib"]
    rows = [[name, _number(v)] for name, v in resident.items() if name != "total"]
    if "total" in resident:
        rows.append(["**total**", _number(resident["total"])])
    return "## Resident arrays\n\n" + _table(["array", "GiB"], rows)


def _memory(plan: Mapping[str, Any]) -> str:
    kinds = ("arguments", "temporaries", "output", "total")
    rows = []
    for name, program in _by_program(plan):
        hbm = program.get("hbm_gib", {})
        fits = MISSING
        if "fits" in program:
            fits = "yes" if program["fits"] else "**no**"
        rows.append([name, *(_number(hbm.get(kind)) for kind in kinds), fits])
    return (
        "## Memory of the programs\n\n"
        + _table(["program", *(f"{kind} GiB" for kind in kinds), "fits"], rows)
        + "\n\nA program fits when its arguments, temporaries and outputs fit beside "
        "the resident arrays that it does not use."
    )


def _work(plan: Mapping[str, Any]) -> str:
    names = ["program", "TFLOP", "by formula", "GB", "network GB", "compute", "memory"]
    names += ["network", "bound by", "times a step"]
    rows = []
    for name, program in _by_program(plan):
        times = program.get("roofline_s", {})
        moved = program.get("collectives")
        total = None if moved is None else network_bytes(moved)
        rows.append(
            [
                name,
                _number(program.get("flops_per_chip"), 1e12),
                _number(program.get("formula_flops_per_chip"), 1e12),
                _number(program.get("bytes_per_chip"), 1e9),
                _number(total, 1e9),
                *(_seconds(times.get(k)) for k in ("compute", "memory", "network")),
                program.get("bound", MISSING),
                str(program.get("times_a_step", MISSING)),
            ]
        )
    return "## Work of the programs\n\n" + _table(names, rows)


def _collectives(plan: Mapping[str, Any]) -> str:
    rows = [
        [name, kind, str(row.get("count", MISSING)), _number(row.get("bytes"), 1e9)]
        for name, program in _by_program(plan)
        for kind, row in program.get("collectives", {}).items()
    ]
    if not rows:
        return ""
    table = _table(["program", "collective", "count", "GB"], rows)
    return "## Collectives\n\n" + table


def _step(plan: Mapping[str, Any]) -> str:
    step = plan.get("step")
    if not step:
        return ""
    rows = [[name, _seconds(value)] for name, value in step.get("phases", {}).items()]
    rows.append(["**step**", _seconds(step.get("seconds"))])
    speed = step.get("tokens_per_s")
    return (
        "## A training step, estimated\n\n"
        + _table(["phase", "time"], rows)
        + (f"\n\n{_number(speed)} sampled tokens/s." if speed else "")
    )


def _misfits(plan: Mapping[str, Any]) -> str:
    lines, room = [], plan["hbm_gib_per_chip"]
    for name in _misfit_names(plan):
        program = plan["programs"][name]
        hbm = program.get("hbm_gib", {})
        needs = _number(hbm.get("total"))
        lines.append(
            f"* {name}: {needs} GiB beside what is resident, of {_number(room)}."
        )
        largest = sorted(program.get("largest", []), key=lambda a: -a["gib"])
        lines += [f"    * {a['name']}: {_number(a['gib'])} GiB" for a in largest]
    return "## What does not fit\n\n" + "\n".join(lines) if lines else ""


def _advice(plan: Mapping[str, Any]) -> str:
    lines = [f"* {line}" for line in plan.get("advice", [])]
    return "## What would help\n\n" + "\n".join(lines) if lines else ""
