"""Compiling every program of a plan, and reading what the compiler says."""

import concurrent.futures
import logging
import math
import os
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.extend

from blue.runtime import watchdog
from blue.runtime.hlo.collectives import collective_totals
from blue.runtime.hlo.flops import product_flops
from blue.runtime.hlo.memory import biggest_buffers, memory_bytes
from blue.runtime.programs import Program

logger = logging.getLogger("blue")
GIB = 2**30


class Part(NamedTuple):
    """One program of a plan."""

    program: Program  # described, not compiled
    formula: float  # FLOPs of one call, the whole machine's
    uses: tuple[str, ...]  # resident arrays among its arguments
    phase: str  # of the profiler's stage; empty: of another
    calls: int  # a training step
    a_turn: bool = False  # one turn of its loop is counted


class Compiled(NamedTuple):
    """What the compiler reports of one call of a program, on one chip."""

    memory: Any  # CompiledMemoryStats; None: it does not fit
    message: str  # of the compiler where it does not
    largest: list[dict[str, Any]]
    flops: float = math.nan
    bytes: float = math.nan
    collectives: Mapping[str, dict[str, int]] = {}


def compile_all(parts: Mapping[str, Part]) -> dict[str, Compiled]:
    """Compiles in parallel and logs the time left."""
    started, found = time.monotonic(), {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        waiting = {pool.submit(compile_part, p): name for name, p in parts.items()}
        for future in concurrent.futures.as_completed(waiting):
            name = waiting[future]
            found[name] = future.result()
            watchdog.sign_of_life()
            spent = time.monotonic() - started
            left = spent / len(found) * (len(parts) - len(found))
            logger.info(
                "compiled %d/%d: %s; %.0f s left", len(found), len(parts), name, left
            )
    return found


def compile_part(part: Part) -> Compiled:
    """Reads FLOPs, bytes and collectives from the compiled program's text. The
    compiler's own counts include a loop's body only once."""
    program = part.program
    try:
        compiled = program.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        largest = largest_of_message(str(error)) or largest_of_trace(program)
        return Compiled(None, str(error), largest)
    text = compiled.as_text()
    largest = [
        {"name": f"{b.name} {b.shape}".strip(), "gib": b.bytes / GIB}
        for b in biggest_buffers(text, 5)
    ]
    return Compiled(
        compiled.memory_analysis(),
        "",
        largest,
        product_flops(text),
        memory_bytes(text, a_turn=part.a_turn),
        collective_totals(text),
    )


def largest_of_trace(program: Program) -> list[dict[str, Any]]:
    """The largest arrays that a program makes, before the compiler fuses any away, each
    as if it were split over all chips. Used where the compiler names none itself."""
    found: dict[str, dict[str, Any]] = {}

    def walk(jaxpr: Any) -> None:
        for eqn in jaxpr.eqns:
            for out in eqn.outvars:
                shape = getattr(out.aval, "shape", None)
                if shape is None or not hasattr(out.aval, "dtype"):
                    continue
                size = math.prod(shape) * getattr(out.aval.dtype, "itemsize", 0)
                name = f"{eqn.primitive} {out.aval.str_short()}"
                found[name] = {"name": name, "gib": size / program.chips / GIB}
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                walk(inner)

    walk(program.trace().jaxpr.jaxpr)
    return sorted(found.values(), key=lambda x: -x["gib"])[:5]


def largest_of_message(message: str) -> list[dict[str, Any]]:
    """The largest arrays that the compiler names when a program does not fit."""
    units = {"B": 1 / GIB, "K": 2**-20, "M": 2**-10, "G": 1.0}
    found = []
    for block in re.split(r"\n\s*\d+\. Size: ", message)[1:6]:
        size = re.match(r"([\d.]+)([BKMG])", block)
        shape = re.search(r"Shape: (\S+)", block)
        name = re.search(r'op_name="([^"]*)"', block)
        if size:
            what = " ".join(m[1] for m in (name, shape) if m)
            found.append({"name": what, "gib": float(size[1]) * units[size[2]]})
    return found
