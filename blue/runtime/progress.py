"""Progress of long loops: rate and time left, in one line."""

import logging
import math
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

logger = logging.getLogger("blue")


LINE_S = 10.0  # seconds between progress lines where there is no terminal
RATE_WINDOW = 50  # steps over which the rate is measured


class Progress:
    """The progress line of a stage, on a terminal or in the log.

    The stage does `total` units (steps, users); a resumed stage skips `first` of them.
    Work that ends within `patience_s` seconds prints nothing.
    """

    def __init__(
        self, stage: str, *, first: int, total: int, unit: str, patience_s: float = 0.0
    ):
        self._stage, self._total, self._unit = stage, total, unit
        self._quiet_until = time.monotonic() + patience_s if patience_s else -math.inf
        self._times: deque[tuple[int, float]] = deque(maxlen=RATE_WINDOW)
        self._last_line = -math.inf
        self._live = sys.stderr.isatty()
        self._open = False
        if first:
            logger.info("%s: resumed at %s %d", stage, unit, first)

    def update(self, step: int, values: Mapping[str, Any]) -> None:
        """Reports that unit `step` and all before it are done."""
        now = time.monotonic()
        self._times.append((step, now))
        if now < self._quiet_until:
            return
        last = step == self._total - 1
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r" + self._line(step, values)[:width].ljust(width))
            sys.stderr.flush()
            self._open = True
        elif last or now - self._last_line >= LINE_S:
            logger.info("%s", self._line(step, values))
            self._last_line = now

    def end(self) -> None:
        """Ends the live line."""
        if self._open:
            sys.stderr.write("\n")

    def _line(self, step: int, values: Mapping[str, Any]) -> str:
        parts = [f"{self._stage} {step + 1}/{self._total}"]
        (first, start), (last, end) = self._times[0], self._times[-1]
        if last > first and end > start:  # without the first step
            rate = (last - first) / (end - start)
            parts.append(f"{rate:.3g} {self._unit}s/s")
            parts.append(f"{duration((self._total - 1 - step) / rate)} left")
        parts += [f"{key} {float(value):.4g}" for key, value in values.items()]
        return "  ".join(parts)


def slices_with_progress(
    total: int, size: int, *, name: str, unit: str
) -> Iterator[slice]:
    """Slices of `size` that cover `total` units, with progress if it takes long."""
    progress = Progress(name, first=0, total=total, unit=unit, patience_s=LINE_S)
    for start in range(0, total, size):
        yield slice(start, start + size)
        progress.update(min(start + size, total) - 1, {})
    progress.end()


def duration(seconds: float) -> str:
    """Seconds as 1:02:03."""
    minutes, s = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}"
