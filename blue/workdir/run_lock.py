"""RUN.lock: at most one run in a workdir, held while stages run.

The file names its holder and is touched every few seconds. A lock that was not touched
for minutes, or whose process on this host has ended, is taken over. In a bucket two
runs that start within the same second may both get it.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from blue.errors import UserError
from blue.runtime import distributed, files

logger = logging.getLogger("blue")

NAME = "RUN.lock"
TOUCH_S = 20.0
SEEN_S = 60.0  # until another host sees the file: network disks cache
STALE_S = 300.0  # untouched for so long: its holder has ended


@contextlib.contextmanager
def hold(workdir: str) -> Iterator[None]:
    """Holds the workdir's lock; process 0 takes it for all.

    Raises `UserError` where another run holds it: one line names both.
    """
    path = epath.Path(workdir) / NAME
    own = {
        "run": uuid.uuid4().hex[:8],
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
    run = distributed.on_process_0(lambda: _first_take(workdir, path, own))
    if jax.process_index() != 0:
        _check_shared(workdir, path, run)
        yield
        return
    done = threading.Event()
    touching = threading.Thread(
        target=_touch, args=(path, own, done), name="run lock", daemon=True
    )
    touching.start()

    def release() -> None:
        if _holder(path).get("run") == own["run"]:
            path.unlink(missing_ok=True)

    distributed.set_last_act(release)
    try:
        yield
    finally:
        done.set()
        touching.join(TOUCH_S)
        release()


def _first_take(workdir: str, path: epath.Path, own: dict[str, Any]) -> str:
    """Takes the lock in process 0; the name of the run, for all processes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if jax.process_count() > 1:
            _wait_for_a_sign(path)
        _take(path, own)
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot write {NAME} there: {error.strerror or error}"
        ) from error
    return own["run"]


def _wait_for_a_sign(path: epath.Path) -> None:
    """Waits until a holder on another host touches the lock or counts as ended.

    A run that lost its first host is soon restarted on others. A lock that nobody holds
    any more must not stop it.
    """
    holder = _holder(path)
    if holder.get("host") == socket.gethostname() or not _lives(holder):
        return
    logger.info("%s: waiting for a sign of life of run %s", path, _name(holder))
    while _lives(holder) and _holder(path) == holder:
        time.sleep(1.0)


def _check_shared(workdir: str, path: epath.Path, run: str) -> None:
    """Raises `UserError` if the processes do not share the workdir."""
    until = time.monotonic() + SEEN_S
    while _holder(path).get("run") != run:
        if time.monotonic() > until:
            raise UserError(
                f"--workdir={workdir}: process {jax.process_index()} on "
                f"{socket.gethostname()} does not see {NAME} of process 0 there; it "
                "must be one directory that all hosts share"
            )
        time.sleep(0.1)


def _take(path: epath.Path, own: dict[str, Any]) -> None:
    """Writes the file, if nobody holds it or its holder has ended."""
    with _exclusive(path.parent):
        if path.exists():
            holder = _holder(path)
            if _lives(holder):
                raise UserError(
                    f"{path}: run {_name(holder)} is at work in this workdir; this one "
                    f"({_name(own)}) must wait for its end or take another --workdir"
                )
            logger.warning("%s: run %s is gone, its lock is taken", path, _name(holder))
        _write(path, own)


@contextlib.contextmanager
def _exclusive(folder: epath.Path) -> Iterator[None]:
    """Lets one process at a time enter; not in a bucket, which has no locks."""
    if "://" in os.fspath(folder):
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # unlocks


def _write(path: epath.Path, own: dict[str, Any]) -> None:
    text = json.dumps({**own, "touched": time.time()}) + "\n"
    # in a bucket another run may do the same
    with files.whole_file(path, durable=False, mark=own["run"]) as draft:
        draft.write_text(text)


def _touch(path: epath.Path, own: dict[str, Any], done: threading.Event) -> None:
    while not done.wait(TOUCH_S):
        try:
            if _holder(path).get("run") != own["run"]:
                logger.warning("%s is not of this run any more", path)
                return
            _write(path, own)
        except OSError as error:  # a full disk: the next save will report it
            logger.warning("%s: cannot be touched: %s", path, error)


def _holder(path: epath.Path) -> dict[str, Any]:
    """The content of the file; empty if it is missing or not ours."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _lives(holder: dict[str, Any]) -> bool:
    """Whether the holder may still run; on this host by its process."""
    touched, pid = holder.get("touched"), holder.get("pid")
    if not isinstance(touched, float) or time.time() - touched > STALE_S:
        return False
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return True
    if pid == os.getpid():  # of an earlier container
        return False
    try:
        os.kill(pid, 0)  # only tests whether it exists
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _name(who: dict[str, Any]) -> str:
    facts = [f"{key} {who.get(key)}" for key in ("host", "pid", "started")]
    return " ".join([str(who.get("run")), *facts])
