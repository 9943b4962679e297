"""Batches whose update was skipped, saved for `python -m blue.training.replay`.

    <workdir>/bad_batches/<stage>-<step>.npz

Plain numpy arrays, nothing pickled. They contain prompts, and so histories: the files
are private (mode 0600).
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from blue.runtime import files

KEPT = 6  # of a stage; the first failures are the most useful
NAME = re.compile(r"(\w+)-(\d+)\.npz")


def save(
    workdir: str | os.PathLike[str],
    stage: str,
    step: int,
    arrays: Mapping[str, np.ndarray],
) -> Path:
    """Writes the arrays of a batch, with `bad_rows`: the rows with a number that is not
    finite. Keeps the first few of a stage and the newest."""
    directory = Path(workdir) / "bad_batches"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{stage}-{step}.npz"
    names = (NAME.fullmatch(p.name) for p in directory.iterdir() if p != path)
    steps = sorted(int(name[2]) for name in names if name and name[1] == stage)
    for extra in steps[KEPT - 1 :]:
        (directory / f"{stage}-{extra}.npz").unlink()
    with files.whole_file(path, private=True) as draft, draft.open("wb") as file:
        np.savez(file, allow_pickle=False, bad_rows=bad_rows(arrays), **arrays)
    return path


def load(path: str | os.PathLike[str]) -> tuple[str, int, dict[str, np.ndarray]]:
    """Stage, step and arrays of a saved batch."""
    found = NAME.fullmatch(Path(path).name)
    if not found:
        raise ValueError(f"{path}: must be named STAGE-STEP.npz")
    with np.load(path, allow_pickle=False) as file:
        return found[1], int(found[2]), dict(file)


def bad_rows(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Indices of the leading axis under which a number is not finite."""
    rows: set[int] = set()
    for x in arrays.values():
        if x.ndim and np.issubdtype(x.dtype, np.floating):
            wrong = ~np.isfinite(x).all(axis=tuple(range(1, x.ndim)))
            rows |= {int(i) for i in np.flatnonzero(wrong)}
    return np.array(sorted(rows), np.int64)
