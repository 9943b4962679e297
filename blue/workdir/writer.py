"""Writes metrics.jsonl, samples.jsonl, TensorBoard files and the console's lines.

Only process 0 writes; on the others every method does nothing. Files of a resumed run
are first cut back to the restored step, so each step is logged once.
"""

import json
import logging
import math
import os
import re
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import jax
import numpy as np

from blue.runtime import files
from blue.runtime.progress import Progress

if TYPE_CHECKING:
    from blue.workdir.tensorboard import TensorBoard

logger = logging.getLogger("blue")
MAX_POINTS = 10_000  # of a projector: a browser's limit

Scalar = float | int | np.generic | np.ndarray | jax.Array


class Writer:
    """One stage's metrics, samples and progress under `workdir`, a local directory.

    `every` is the number of steps between logged steps (`due`); `hparams` is the
    resolved config, flat or nested. TensorBoard files go to tensorboard/<stage>.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        stage: str,
        first_step: int,
        num_steps: int,
        every: int,
        tensorboard: bool,
        hparams: Mapping[str, Any],
    ):
        self._stage, self._num_steps, self._every = stage, num_steps, every
        self._writes = jax.process_index() == 0
        self._tensorboard: TensorBoard | None = None
        self._progress = Progress(stage, first=first_step, total=num_steps, unit="step")
        if not self._writes:
            return
        root = Path(workdir)
        root.mkdir(parents=True, exist_ok=True)
        self._metrics = _open_lines(root / "metrics.jsonl", stage, first_step)
        # Profiles are personal data: the file is private.
        samples = root / "samples.jsonl"
        self._samples = _open_lines(samples, stage, first_step, private=True)
        if tensorboard:
            self._tensorboard = _open_tensorboard(root, stage, first_step)
            if first_step == 0:
                self._tensorboard.hparams(hparams)

    def due(self, step: int) -> bool:
        """True where metrics are logged: every `every` steps and at the last one."""
        return step % self._every == 0 or step == self._num_steps - 1

    def scalars(self, step: int, values: Mapping[str, Scalar]) -> None:
        """One line of metrics.jsonl and one point a curve; call once a logged step.

        Values that are not finite become null.
        """
        assert not {"step", "stage"} & values.keys(), "reserved keys"
        if not self._writes:
            return
        numbers = {key: _number(value) for key, value in values.items()}
        _write_line(self._metrics, {"step": step, "stage": self._stage, **numbers})
        if self._tensorboard is not None:
            for key, number in numbers.items():
                if number is not None:
                    self._tensorboard.scalar(step, key, number)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes rows to samples.jsonl, each after its step and stage."""
        if self._writes:
            for row in rows:
                line = {"step": step, "stage": self._stage, **row}
                _write_line(self._samples, _finite(line))

    def histogram(self, step: int, key: str, values: np.ndarray | jax.Array) -> None:
        """Distribution of the finite `values`."""
        if self._tensorboard is not None:
            flat = np.asarray(values, np.float32).ravel()
            flat = flat[np.isfinite(flat)]
            if flat.size:
                self._tensorboard.histogram(step, key, flat)

    def text(self, step: int, key: str, markdown: str) -> None:
        """A text panel; TensorBoard escapes HTML itself."""
        if self._tensorboard is not None:
            self._tensorboard.text(step, key, markdown)

    def projector(
        self,
        step: int,
        name: str,
        embeddings: np.ndarray | jax.Array,
        labels: Sequence[tuple[str, str]],
    ) -> None:
        """Points [n, E] of TensorBoard's projector, 10,000 at most.

        Each has a label of two columns: its kind, for the colour, and its name.
        """
        assert len(embeddings) == len(labels) and re.fullmatch(r"[\w.-]+", name)
        if self._tensorboard is not None:
            points = np.asarray(embeddings[:MAX_POINTS], np.float32)
            clean = [[_label(kind), _label(name)] for kind, name in labels[:MAX_POINTS]]
            self._tensorboard.projector(
                step, name, points, clean, header=["kind", "name"]
            )

    def progress(self, step: int, values: Mapping[str, Scalar]) -> None:
        """Reports that `step` is done, with the rate, the time left and `values`.

        A live line on a terminal; elsewhere a log line every ten seconds at most.
        """
        if self._tensorboard is not None:
            self._tensorboard.flush()  # before the checkpoint that would skip the step
        if self._writes:
            self._progress.update(step, values)

    def close(self) -> None:
        """Flush and close all files."""
        if self._writes:
            self._progress.end()
            self._metrics.close()
            self._samples.close()
            if self._tensorboard is not None:
                self._tensorboard.close()


def last_lines(
    workdir: str | os.PathLike[str], stage: str, count: int
) -> list[dict[str, Any]]:
    """The newest `count` lines of this stage in metrics.jsonl, the newest last."""
    path = Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    mark = f'"stage": {json.dumps(stage)},'  # as `_write_line` writes it
    with path.open(encoding="utf-8") as file:
        newest = deque((line for line in file if mark in line), maxlen=count)
    return [json.loads(line) for line in newest]


def has_lines(workdir: str | os.PathLike[str], stage: str) -> bool:
    """Whether metrics.jsonl has a line of this stage; the last may be torn."""
    path = Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return False
    mark = f'"stage": {json.dumps(stage)},'  # as `_write_line` writes it
    with path.open(encoding="utf-8", errors="replace") as file:
        return any(mark in line for line in file)


def write_curves(
    workdir: str | os.PathLike[str],
    stage: str,
    curves: Mapping[str, Mapping[int, float]],
) -> None:
    """TensorBoard curves whose axis is not a step: tag -> {x: value}.

    For a stage without a `Writer`; they replace the stage's earlier curves.
    """
    if jax.process_index():
        return
    shutil.rmtree(Path(workdir) / "tensorboard" / stage, ignore_errors=True)
    writer = _open_tensorboard(Path(workdir), stage, 0)
    for key, points in curves.items():
        for x, value in sorted(points.items()):
            writer.scalar(x, key, value)
    writer.close()


def _open_tensorboard(workdir: Path, stage: str, first_step: int) -> "TensorBoard":
    # imported here: it takes half a second
    from blue.workdir.tensorboard import TensorBoard

    return TensorBoard(workdir / "tensorboard" / stage, first_step=first_step)


# --- lines of JSON


def _open_lines(
    path: Path, stage: str, first_step: int, *, private: bool = False
) -> IO[str]:
    """Opens for appending, without the lines that a run from `first_step` repeats."""
    _cut_back(path, stage, first_step, private=private)
    mode = 0o600 if private else 0o666
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, mode)
    return os.fdopen(descriptor, "a", encoding="utf-8", newline="\n")


def _cut_back(path: Path, stage: str, first_step: int, *, private: bool) -> None:
    """Drops this stage's lines from `first_step` on, and incomplete lines."""
    if not path.exists():
        return
    with files.whole_file(path, private=private) as draft:
        # Line by line and as bytes: the file may be large, its end may not be UTF-8.
        with path.open("rb") as old, draft.open("wb") as new:
            for line in old:
                try:
                    row = json.loads(line)
                    keep = row["stage"] != stage or row["step"] < first_step
                except (ValueError, KeyError, TypeError):
                    logger.warning("%s: dropped an unreadable line", path)
                    continue
                if keep:
                    new.write(line if line.endswith(b"\n") else line + b"\n")


def _write_line(file: IO[str], row: Mapping[str, Any]) -> None:
    # ASCII: no separator that some reader takes for a line end, no lone surrogate.
    file.write(json.dumps(row, allow_nan=False) + "\n")
    file.flush()


def _number(value: Scalar) -> float | int | None:
    """A plain number, None where it is not finite."""
    if isinstance(value, int | np.integer):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def _finite(value: Any) -> Any:
    """`value` with plain numbers and lists throughout, None where not finite."""
    match value:
        case str() | bool() | None:
            return value
        case Mapping():
            return {str(key): _finite(x) for key, x in value.items()}
        case list() | tuple():
            return [_finite(x) for x in value]
        case np.ndarray() | jax.Array() if value.ndim:
            return [_finite(x) for x in np.asarray(value)]
        case _:
            return _number(value)


def _label(label: str) -> str:
    """One line of the projector's table, which is written unescaped."""
    # str.split() takes tabs and all line ends; the rest are control characters.
    line = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", label).split())
    return line.encode("utf-8", "replace").decode()[:200] or "-"
