"""Checkpoints of one stage, on Orbax: committed whole, verified when read.

    <directory>/<step>/        state, meta.json's content and, last, the commit file
    <directory>/best/<n>/      the same for the best parameters; the highest n counts
    <directory>/finished.json  the stage is done

A directory without its commit file is unfinished and ignored. Orbax does not notice
changed bits. So an integer fingerprint of the state is saved with it and compared after
reading. A step that fails is skipped with a warning, and the next older one is read.

Only this file imports Orbax. It uses the free functions of v1 and its own list of
steps. `training.Checkpointer` cannot be used: in commit-file mode it deletes every
other directory without a commit file.
"""

import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import lax
from jax.experimental import multihost_utils
from jaxtyping import Array, UInt32
from orbax.checkpoint import v1 as ocp

from blue.errors import UserError
from blue.runtime import files

logger = logging.getLogger("blue")

COMMIT_FILE = "commit_success.txt"  # written by Orbax as the last file of a save
FINISHED_FILE = "finished.json"
NUMBER = "0|[1-9][0-9]*"  # names of steps


# --- fingerprint: the same number under every sharding and device count


def _words(x: Array) -> UInt32[Array, "..."]:
    """The bits of `x` as unsigned 32-bit words; 8-byte types give one more axis."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    word = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return lax.bitcast_convert_type(x, word).astype(jnp.uint32)


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A one-to-one scramble of 32 bits: the finaliser of MurmurHash3."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


@jax.jit
def _leaf_sum(x: Array, salt: UInt32[Array, ""]) -> UInt32[Array, ""]:
    """Words scrambled with their position, summed modulo 2^32.

    It is one-to-one, so every change within one word is noticed. With a plain product
    of word and hash, two changed signs could cancel.
    """
    words = _words(x)
    position = jnp.full(words.shape, salt)
    stride = 1
    for axis in reversed(range(words.ndim)):
        index = lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position += index * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(_mix(words ^ _mix(position)), dtype=jnp.uint32)


def fingerprint(tree: Any) -> int:
    """Integrity number of all bits, positions and leaf names of `tree`, in [0, 2^32).

    Integer sums only, so it does not depend on sharding, devices or hosts.
    """
    sums = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, np.ndarray) and leaf.dtype.itemsize == 8:
            # Without 64-bit mode jax would silently halve it.
            leaf = np.ascontiguousarray(leaf)[..., None].view(np.uint32)
        salt = jnp.uint32(zlib.crc32(_name(path).encode()))
        sums.append(_leaf_sum(leaf, salt))  # leaf by leaf: their devices may differ
    return sum(int(s) for s in sums) % 2**32


# --- checkpoints


class Checkpoints:
    """The checkpoints of one stage under `directory` (local or gs://).

    Keeps the newest `keep` steps and, unless 0, every step divisible by
    `milestone_every`. All methods that touch arrays are called by every process.
    Saves block until committed, so donated buffers are safe afterwards.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int, milestone_every: int):
        assert keep >= 1 and milestone_every >= 0
        directory = os.fspath(directory)
        if "://" not in directory:  # Orbax takes no relative path
            directory = os.path.abspath(directory)
        self._directory = epath.Path(directory)
        self.directory = directory
        self._keep = keep
        self._milestone_every = milestone_every
        self._swept = False
        self._there = False  # the directory has had steps

    def latest_step(self, *, traces: Sequence[str] = ()) -> int | None:
        """The newest committed step, or None where nothing was ever saved.

        Warns of unfinished ones. Raises `UserError` where saves were lost: none is
        committed, and there is more than an interrupted first save. Starting from
        scratch silently would hide the loss. A missing directory means that the user
        moved it, to start again.

        traces: other signs of training in the workdir, in words.
        """
        steps, unfinished = _list(self._directory)
        for path in unfinished:
            logger.warning("%s has no %s: not finished, ignored", path, COMMIT_FILE)
        self._there |= bool(steps)
        if steps or not self._directory.exists():
            return steps[-1] if steps else None
        lost = sorted(path.name for path in unfinished if path.name != "0")
        found = [f"{', '.join(lost)} without {COMMIT_FILE}"] if lost else []
        others = (self._best, self._directory / FINISHED_FILE)  # written after step 0
        found += [path.name for path in others if path.exists()]
        if found or traces:
            raise UserError(
                f"{self._directory}: no checkpoint is complete, and training had begun "
                f"(found {', '.join([*found, *traces])}); restore one from a "
                "copy, or move the directory away to start again"
            )
        return None

    def reopen(self, step: int) -> None:
        """Undoes `finish`: the stage resumes from `step`, which must exist."""
        steps, _ = _list(self._directory)
        if step not in steps:
            raise UserError(f"{self._directory}: no checkpoint {step}, it has {steps}")
        path = self._directory / FINISHED_FILE
        if jax.process_index() == 0 and path.exists():
            logger.warning("%s is opened again, from step %d", self._directory, step)
            path.unlink()
        _barrier("reopen")

    def go_back(self, step: int) -> None:
        """Removes the steps above `step`, before it is restored."""
        steps, _ = _list(self._directory)
        if step in steps:
            reason = f"going back to step {step}"
            _delete({self._directory / str(s): reason for s in steps if s > step})

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Write `state` (tree of arrays, no typed keys) and `meta` (JSON) at once.

        Older steps are deleted only afterwards. Steps above `step` are deleted, too:
        the run was resumed from an earlier one.
        """
        if self._there and not self._directory.exists():
            raise UserError(
                f"{self._directory} has vanished, and its checkpoints with it: a disk "
                "or a mount is gone; bring it back and start again"
            )
        path, gone = self._directory / str(step), {}
        if not self._swept:
            gone = dict.fromkeys(_list(self._directory)[1], "unfinished checkpoint")
            self._swept = True
        if path.exists():
            gone[path] = "replaced checkpoint"
        _delete(gone)
        _write(path, step, state, meta)
        self._there = True
        steps, _ = _list(self._directory)
        older = [s for s in steps if s <= step]
        kept = set(older[-self._keep :])
        if self._milestone_every:
            kept |= {s for s in older if s % self._milestone_every == 0}
        reasons = ("old checkpoint", "checkpoint of an older run")
        gone = {s: reasons[s > step] for s in steps if s not in kept}
        _delete({self._directory / str(s): reason for s, reason in gone.items()})

    def restore(
        self, abstract_state: Any, step: int | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """The newest good state (or that of `step`) and its meta, with key "step".

        `abstract_state` is a tree of `jax.ShapeDtypeStruct` with shardings, which the
        arrays get. Raises `UserError` when no step can be read, or when leaf names,
        shapes or dtypes differ (Orbax would cast in silence).
        """
        steps, _ = _list(self._directory)
        wanted = steps[::-1] if step is None else [step]
        if not wanted or wanted[0] not in steps:
            found = f"it has {steps}" if steps else "it has none"
            raise UserError(
                f"{self._directory}: no checkpoint {'' if step is None else step}, "
                f"{found}"
            )
        return _first_good(self._directory, wanted, abstract_state)

    # --- best

    def save_best(
        self, step: int, params: Any, meta: Mapping[str, Any], value: float
    ) -> None:
        """Replace the best parameters. The caller decides that `value` is better."""
        numbers, unfinished = _list(self._best)
        _delete(dict.fromkeys(unfinished, "unfinished checkpoint"))
        path = self._best / str(numbers[-1] + 1 if numbers else 0)
        _write(path, step, params, {**meta, "value": value})
        _delete({self._best / str(number): "former best" for number in numbers})

    def best(self) -> dict[str, Any] | None:
        """Meta of the best parameters with keys "step" and "value", or None."""
        for number in _list(self._best)[0][::-1]:
            path = self._best / str(number)
            try:
                return _read_record(path)["meta"]
            except Exception as error:  # as in _first_good
                logger.warning(
                    "BAD CHECKPOINT, passed over: %s: %s", path, _cause(error)
                )
        return None

    def restore_best(self, abstract_params: Any) -> tuple[Any, dict[str, Any]]:
        """The best parameters and their meta, verified; otherwise as `restore`."""
        numbers, _ = _list(self._best)
        if not numbers:
            raise UserError(f"{self._best}: no checkpoint")
        return _first_good(self._best, numbers[::-1], abstract_params)

    @property
    def _best(self) -> epath.Path:
        return self._directory / "best"

    # --- done

    def finish(self, meta: Mapping[str, Any]) -> None:
        """Mark the stage as done; `meta` (JSON) is what `finished` gives back."""
        if jax.process_index() == 0:
            self._directory.mkdir(parents=True, exist_ok=True)
            text = json.dumps({**meta, "finished": True}, indent=2)
            files.write_text(self._directory / FINISHED_FILE, text)
        _barrier("finish")

    def finished(self) -> dict[str, Any] | None:
        """The `meta` given to `finish`, or None while the stage is not done."""
        path = self._directory / FINISHED_FILE
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except ValueError as error:  # counts as not finished
            logger.warning("%s is broken (%s): not finished", path, error)
            return None

    def close(self) -> None:
        """Does nothing today: no file stays open. Stages call it at their end."""


# --- directories


def _list(directory: epath.Path) -> tuple[list[int], list[epath.Path]]:
    """Committed numbers, ascending, and numbered directories without a commit."""
    if not directory.exists():
        return [], []
    # Not 007, which would be read as 7 and looked for there.
    numbered = [p for p in directory.iterdir() if re.fullmatch(NUMBER, p.name)]
    done = [int(p.name) for p in numbered if (p / COMMIT_FILE).exists()]
    return sorted(done), [p for p in numbered if not (p / COMMIT_FILE).exists()]


def _delete(paths: Mapping[epath.Path, str]) -> None:
    """Removes checkpoints, commit file first: a half-deleted one does not count.

    paths: each with the reason. Those of process 0 count. All processes call this and
    wait here, even if they find nothing.
    """
    if jax.process_index() == 0:
        for path, reason in paths.items():
            logger.info("removing %s (%s)", path, reason)
            if not path.is_dir():  # not ours
                path.unlink()
                continue
            (path / COMMIT_FILE).unlink(missing_ok=True)
            path.rmtree()
    _barrier("delete")


def _barrier(name: str) -> None:
    """Waits for all processes: a directory has one writer and many readers."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"checkpoints:{name}")


def _everywhere(fact: bool) -> bool:
    """Whether `fact` is true in all processes: they resume from the same step or
    none."""
    if jax.process_count() == 1:
        return fact
    return bool(np.all(multihost_utils.process_allgather(np.array(fact))))


# --- Orbax


def _context() -> ocp.Context:
    context = ocp.Context()
    context.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    context.checkpointables.registry = registry
    return context


def _write(path: epath.Path, step: int, state: Any, meta: Mapping[str, Any]) -> None:
    record = {
        "step": step,
        "fingerprint": fingerprint(state),
        "leaves": _leaves(state),
        "meta": dict(meta),
    }
    record["crc32"] = _crc(record)
    _warn_if_full(path, state)
    try:
        with _context():
            ocp.save_checkpointables(path, {"state": state, "meta": record})
    except Exception as error:  # a full disk raises various types
        raise UserError(
            f"{path}: cannot be saved: {_cause(error)}; the checkpoints before it are "
            "as they were: make room or mend the disk, and start again"
        ) from error
    _barrier("write")


def _warn_if_full(path: epath.Path, state: Any) -> None:
    """Warns before a save that may not fit on the disk; it is tried anyway."""
    if "://" in os.fspath(path):
        return
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    folder = next(p for p in path.parents if p.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        logger.warning(
            "%s: %.1f GB free, and a checkpoint needs about %.1f GB",
            folder, free / 1e9, needed / 1e9,
        )  # fmt: skip


def _read_record(path: epath.Path) -> dict[str, Any]:
    """The record of `_write`; its meta gets the key "step"."""
    with _context():
        record: Any = ocp.load_checkpointables(path, {"meta": None})["meta"]
    if record.pop("crc32") != _crc(record):
        raise _Corrupt("meta does not agree with its checksum")
    return {**record, "meta": {**record["meta"], "step": record["step"]}}


def _read(
    path: epath.Path, abstract: Any, wants: Mapping[str, str]
) -> tuple[Any, dict[str, Any]]:
    """The state, not yet verified, and its record."""
    record = _read_record(path)
    has = record["leaves"]
    for name in sorted({*wants, *has}):
        want, found = wants.get(name, "nothing"), has.get(name, "nothing")
        if want != found:
            raise UserError(
                f"{path}: leaf {name}: expected {want}, found {found}; it was written "
                "with another model or other adapters (lora): keep those of that run, "
                "or take another --workdir"
            )
    with _context():
        state = ocp.load_checkpointables(path, {"state": abstract})["state"]
    return state, record


def _first_good(
    directory: epath.Path, numbers: list[int], abstract: Any
) -> tuple[Any, dict[str, Any]]:
    wants = _leaves(abstract)
    reason = ""
    for number in numbers:
        path = directory / str(number)
        state, record, wrong = None, {}, ""
        try:
            state, record = _read(path, abstract, wants)
        except (UserError, jax.errors.JaxRuntimeError):  # would fail for every step
            raise
        except Exception as error:  # broken files raise various types
            wrong = _cause(error)
        if _everywhere(not wrong):
            found, saved = fingerprint(state), record["fingerprint"]
            if found == saved:
                return state, record["meta"]
            wrong = f"fingerprint {found:08x}, saved {saved:08x}"
        reason = f"{path}: {wrong or 'another process could not read it'}"
        logger.warning("BAD CHECKPOINT, passed over: %s", reason)
    raise UserError(
        f"no checkpoint of {directory} can be read, tried {numbers}; last: {reason}. "
        "Restore them from a copy, or move the directory away to start again"
    )


def _leaves(tree: Any) -> dict[str, str]:
    """Leaf name -> "dtype[shape]"."""
    return {
        _name(path): f"{x.dtype}{list(x.shape)}"
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def _name(path: tuple[Any, ...]) -> str:
    """A leaf's path, the same for arrays and their abstract tree: params/w."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _crc(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


class _Corrupt(Exception):
    """Read without an error, but with a wrong fingerprint."""


def _cause(error: BaseException) -> str:
    """The cause in one line; Orbax has it at the end of the chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
