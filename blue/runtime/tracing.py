"""Traces of chosen steps, for TensorBoard's profile plugin and for Perfetto."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from blue.runtime import watchdog

logger = logging.getLogger("blue")


def steps(
    numbers: range, window: Sequence[int], directory: str | Path
) -> Iterator[int]:
    """Yields `numbers` for a loop over steps and traces those in `window`.

    window: first and last step, or nothing. The trace, in directory/plugins/profile/,
    names each step and each phase of the watchdog. If tracing fails, this is logged and
    the loop continues.
    """
    chosen = range(window[0], window[1] + 1) if window else range(0)
    phases, tracing = _Phases(), False
    try:
        for step in numbers:
            if step not in chosen:
                yield step
                continue
            tracing = tracing or _start(directory)
            watchdog.listeners.append(phases.begin)
            try:
                with jax.profiler.StepTraceAnnotation("step", step_num=step):
                    yield step
                    phases.end()
            finally:
                watchdog.listeners.remove(phases.begin)
            if tracing and step + 1 not in chosen:
                tracing = _stop(directory)
    finally:
        if tracing:  # the loop ended inside the window
            _stop(directory)


class _Phases:
    """Names phases in the trace, each until the next begins."""

    def __init__(self) -> None:
        self._open: jax.profiler.TraceAnnotation | None = None

    def begin(self, name: str) -> None:
        self.end()
        self._open = jax.profiler.TraceAnnotation(name)
        self._open.__enter__()

    def end(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None


def _start(directory: str | Path) -> bool:
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # no Python calls: there are too many
    try:
        jax.profiler.start_trace(
            directory, create_perfetto_trace=True, profiler_options=options
        )
    except RuntimeError as error:  # another trace is active
        logger.warning("profile_steps: no trace: %s", str(error).partition("\n")[0])
        return False
    return True


def _stop(directory: str | Path) -> bool:
    try:
        jax.profiler.stop_trace()
        logger.info("profile_steps: a trace is in %s/plugins/profile", directory)
    except (OSError, RuntimeError) as error:
        logger.warning("profile_steps: no trace: %s", str(error).partition("\n")[0])
    return False
