"""A run that hangs ends with exit code 71, all stacks on stderr and in a file.

Stages report their phase (`sign_of_life`, `phase`); every call of a compiled program is
a sign of life too. A thread counts the seconds since the last sign and compares them
with the limit of the phase. It writes heartbeat.json for outside monitors:

    {"stage", "step", "phase", "quiet_s", "time", "host", "pid", "status"}

`time` is when the file was written, in seconds since 1970. `quiet_s` are the seconds
without a sign of life. `status` is running, done or stopped.
"""

import contextlib
import faulthandler
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from blue.runtime import files

logger = logging.getLogger("blue")
EXIT_CODE = 71
TICK_S = 0.5  # between two checks of the thread
HEARTBEAT_S = 5.0  # between two heartbeats

# What the process is doing, for the thread; `signs` counts signs of life.
_now: dict[str, Any] = {"stage": "", "step": None, "phase": "load", "signs": 0}

listeners: list[Callable[[str], None]] = []  # called with each new phase


def sign_of_life(phase: str = "", *, step: int | None = None, stage: str = "") -> None:
    """A sign of life; also sets `phase`, `step` and `stage`, where given."""
    if stage:
        _now.update(stage=stage, step=None)
    if step is not None:
        _now["step"] = step
    if phase:
        _now["phase"] = phase
        for listener in listeners:
            listener(phase)
    _now["signs"] += 1


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Sets the phase `name` inside, and the former phase afterwards."""
    before = _now["phase"]
    sign_of_life(name)
    try:
        yield
    finally:
        sign_of_life(before)


@contextlib.contextmanager
def watching(
    workdir: str | os.PathLike[str],
    limits: Mapping[str, float],
    *,
    process: int | None = None,
) -> Iterator[None]:
    """Watches the code inside; limits: phase -> seconds, 0 for none.

    process: this process's index where there are several; each has its own heartbeat.
    """
    _now.update(stage="", step=None, phase="load")
    name = "heartbeat.json" if process is None else f"heartbeat-{process}.json"
    path, stop = Path(workdir, name), threading.Event()
    thread = threading.Thread(
        target=_watch, args=(path, dict(limits), stop), name="watchdog", daemon=True
    )
    thread.start()
    status = "stopped"
    try:
        yield
        status = "done"
    finally:
        stop.set()
        thread.join()
        _write_heartbeat(path, 0.0, status)


def _watch(path: Path, limits: dict[str, float], stop: threading.Event) -> None:
    """The thread. It counts its own ticks: a suspended process did not hang."""
    signs, quiet_s, unwritten_s, saved = _now["signs"], 0.0, 0.0, False
    before = time.monotonic()
    saved = _write_heartbeat(path, quiet_s, "running")
    while not stop.wait(TICK_S):
        now = time.monotonic()
        tick_s, before = min(now - before, 2 * TICK_S), now
        quiet_s += tick_s
        unwritten_s += tick_s
        if signs != _now["signs"]:
            signs, quiet_s = _now["signs"], 0.0
        limit = limits.get(_now["phase"], 0.0)
        if limit and quiet_s > limit:
            _leave(path, quiet_s, limit)
        if unwritten_s >= HEARTBEAT_S:
            unwritten_s = 0.0
            saved = _write_heartbeat(path, quiet_s, "running", warn=saved) and saved


def _write_heartbeat(
    path: Path, quiet_s: float, status: str, *, warn: bool = True
) -> bool:
    """Replaces the file; False if it cannot be written."""
    record = {
        "stage": _now["stage"],
        "step": _now["step"],
        "phase": _now["phase"],
        "quiet_s": round(quiet_s, 1),
        "time": round(time.time(), 1),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "status": status,
    }
    try:
        files.write_text(path, json.dumps(record) + "\n", durable=False)
    except OSError as error:
        if warn:
            logger.warning("%s: no heartbeat: %s", path, error.strerror)
        return False
    return True


def _leave(path: Path, quiet_s: float, limit: float) -> None:
    """Writes the stacks of all threads, and ends the process at once."""
    message = (
        f"hang: stage {_now['stage'] or '-'}, step {_now['step']}, phase "
        f"{_now['phase']}: no sign of life for {quiet_s:.0f} s, more than "
        f"watchdog.{_now['phase']} = {limit:g}; the newest checkpoint is kept\n"
    )
    os.write(2, message.encode())  # not the logger: its lock may be what hangs
    faulthandler.dump_traceback(2, all_threads=True)
    name = f"hang-{socket.gethostname()}-{os.getpid()}.txt"
    with contextlib.suppress(OSError), path.with_name(name).open("w") as file:
        file.write(message)
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
    os._exit(EXIT_CODE)
