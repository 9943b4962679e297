"""Compiled programs. Nothing is jitted elsewhere.

A builder takes shapes (abstract arrays) and returns an executable. So a stage compiles
everything before its first step, and nothing can recompile in the loop. Compilations
run in parallel; `wait` returns when all are done. Stages of a process share inference
programs. Arguments are sharded as `sharding` says: parameters by rule, batches by rows.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from jax.sharding import Mesh

from blue.runtime import compile_cache, preemption, watchdog
from blue.runtime.sharding import by_batch

logger = logging.getLogger("blue")

# Of the process, for `speed/compiles`; including those read from the compile cache.
compiles = {"count": 0, "seconds": 0.0}


def _count_compile(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        compiles["count"] += 1
        compiles["seconds"] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_count_compile)


_pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))
_pending: list[Future] = []
_only_described = False


class Program:
    """A program for arguments of given shapes and shardings; compiled in a thread."""

    def __init__(self, jitted: Any, args: tuple, mesh: Mesh | None) -> None:
        self.args = args
        self._jitted, self._mesh = jitted, mesh
        self._compiled = None if _only_described else _pool.submit(self.compile)
        if self._compiled:
            _pending.append(self._compiled)

    def __call__(self, *arguments: Any) -> Any:
        """Runs the program; waits for its compilation first."""
        watchdog.sign_of_life()
        assert self._compiled, "only described"
        return self._compiled.result()(*arguments)

    @property
    def chips(self) -> int:
        """How many devices it runs on."""
        return self._mesh.size if self._mesh else 1

    def compile(self) -> Any:
        """Compiles the executable anew at each call."""
        return self.trace().lower().compile()

    def trace(self) -> Any:
        """The program as jax sees it: its jaxpr."""
        # for sharding.keep_rows and gather
        on_mesh = jax.set_mesh(self._mesh) if self._mesh else contextlib.nullcontext()
        with on_mesh:
            return self._jitted.trace(*self.args)


@contextlib.contextmanager
def descriptions_only() -> Iterator[None]:
    """Inside, programs are described but not compiled: stage `plan` compiles them
    itself."""
    global _only_described
    _only_described = True
    try:
        yield
    finally:
        _only_described = False


def compile_program(
    fn: Callable, args: tuple, *, out_shardings: Any = None, donate: tuple = ()
) -> Program:
    """Starts to compile fn for abstract arguments with shardings."""
    jitted = jax.jit(fn, out_shardings=out_shardings, donate_argnums=donate)
    leaf = jax.tree.leaves((args, out_shardings))[0]
    # single-device arrays may have no mesh
    mesh = getattr(getattr(leaf, "sharding", leaf), "mesh", None)
    return Program(jitted, args, mesh)


def wait() -> None:
    """Waits until all programs are compiled; raises the error of one that failed."""
    started, count = time.monotonic(), len(_pending)
    with watchdog.phase("compile"):
        while _pending:
            _pending.pop().result()
            watchdog.sign_of_life()
    preemption.leave_if_requested("stopped after compilation")
    seconds = time.monotonic() - started
    logger.info("waited %.1f s for the last of %d programs to compile", seconds, count)
    read = compile_cache.hits
    logger.info(
        "since the start %d compiled (%.1f s of work), %d read from the cache (%.1f s)",
        compiles["count"] - read["count"],
        compiles["seconds"] - read["seconds"],
        read["count"],
        read["seconds"],
    )


def rows(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> Any:
    """An abstract batch, its leading axis split over the mesh."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=by_batch(mesh))


def shardings_of(tree: Any) -> Any:
    """The shardings of abstract arrays."""
    return jax.tree.map(lambda x: x.sharding, tree)
