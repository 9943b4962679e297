"""TensorBoard files of a stage, written with TensorBoard's own parts.

Events go to a plain file through its `RecordWriter`. The event writers of TensorBoard,
tensorboardX and torch keep events in a queue for up to two minutes. A kill would lose
points of steps that a resumed run does not repeat.
"""

import logging
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from jaxtyping import Float
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins import projector
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from blue.runtime import files

logger = logging.getLogger("blue")

# The classes are made at import, so type checkers do not see them.
events: Any = event_pb2
summaries: Any = summary_pb2
projectors: Any = projector


class TensorBoard:
    """One stage's event file and projector in `directory`, which is created.

    Points from `first_step` on of an earlier run are hidden.
    """

    def __init__(self, directory: Path, *, first_step: int):
        directory.mkdir(parents=True, exist_ok=True)
        name = (  # TensorBoard reads files in the order of their names
            f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
            f".from_{first_step:08d}.{os.getpid()}"
        )
        self._directory = directory
        # Sample profiles are personal data: the file is private.
        private = lambda path, flags: os.open(path, flags, 0o600)
        self._records = RecordWriter(open(directory / name, "ab", opener=private))
        self._write(events.Event(file_version="brain.Event:2"))
        start = events.SessionLog(status=events.SessionLog.START)
        self._write(events.Event(step=first_step, session_log=start))

    def scalar(self, step: int, key: str, value: float | int) -> None:
        """A point of the curve `key`."""
        point = summaries.Summary.Value(tag=_tag(key), simple_value=value)
        self._add(step, summaries.Summary(value=[point]))

    def histogram(self, step: int, key: str, values: Float[np.ndarray, " n"]) -> None:
        """The distribution of finite values, in 30 bins of equal width."""
        self._add(step, histogram_pb(_tag(key), values))

    def text(self, step: int, key: str, markdown: str) -> None:
        """A text panel; TensorBoard escapes HTML itself."""
        self._add(step, text_pb(f"{key}/text_summary", markdown))

    def hparams(self, config: Mapping[str, Any]) -> None:
        """The run's settings, flat or nested, for the table of runs."""
        self._add(0, hparams_pb(_flat(config)))

    def projector(
        self,
        step: int,
        name: str,
        points: Float[np.ndarray, "n E"],
        labels: Sequence[Sequence[str]],
        *,
        header: Sequence[str],
    ) -> None:
        """Points of the projector and their labels, a column each of `header`.

        An existing projector stays: a resumed run would write it again.
        """
        listed = self._directory / "projector_config.pbtxt"
        config, place = _read_projector(listed), f"{step:05d}/{name}"
        embedding = {
            "tensor_name": f"{name}:{step:05d}",
            "tensor_path": f"{place}/tensors.tsv",
            "metadata_path": f"{place}/metadata.tsv",
        }
        if any(e.tensor_path == embedding["tensor_path"] for e in config.embeddings):
            return
        with files.whole_directory(self._directory / place) as folder:
            table = [header, *labels]
            (folder / "metadata.tsv").write_text(_lines(table), encoding="utf-8")
            (folder / "tensors.tsv").write_text(_lines(points.tolist()))
        config.embeddings.add(**embedding)
        files.write_text(listed, text_format.MessageToString(config))

    def flush(self) -> None:
        """Writes all events to the file: a kill does not lose them."""
        self._records.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._records.close()

    def _add(self, step: int, summary: Any) -> None:
        self._write(events.Event(step=step, summary=summary))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


def _tag(key: str) -> str:
    """`key` with the characters allowed in tags since the first version."""
    return re.sub(r"[^-/\w.]", "_", key).lstrip("/")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; other values than numbers become text."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, bool | int | float | str)
            flat[f"{prefix}{key}"] = value if plain else str(value)
    return flat


def _read_projector(path: Path) -> Any:
    """The projector's config so far."""
    config = projectors.ProjectorConfig()
    if path.exists():
        try:
            text_format.Parse(path.read_text(), config)
        except text_format.ParseError as error:
            logger.warning("%s is damaged (%s) and is begun again", path, error)
            config = projectors.ProjectorConfig()
    return config


def _lines(rows: Sequence[Sequence[Any]]) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)
