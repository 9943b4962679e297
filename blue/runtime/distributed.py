"""Several processes in one run: how they start, wait for each other, and end.

`join` connects them to one jax runtime, from config or environment. A run of one
process skips all of this. A thread then writes signs of life of this process to the
runtime's key-value store. It logs the name of every process whose signs stop.

A lost process cannot be replaced: the runtime aborts the others. It does so at once
where it was process 0 (the coordinator), else after `heartbeat_s`. No Python code runs
before an abort. So a handler of SIGABRT names the lost process once more and ends with
exit code 75. After a restart the run continues from its newest checkpoint.
"""

import contextlib
import ctypes
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
from jax._src import distributed as runtime  # for its key-value store

from blue.errors import UserError

logger = logging.getLogger("blue")
LOST = 75  # exit code: start again
CRASH = 1  # of any other exception, maybe due to a lost process
GRACE_S = 10.0  # for the others to end by themselves after one has ended
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

T = TypeVar("T")


class Place(NamedTuple):
    """This process's place in the run."""

    coordinator: str  # host:port of process 0
    num_processes: int
    process_id: int


class _Joined(NamedTuple):
    """The state of the thread and the handler."""

    client: Any  # of the runtime
    place: Place
    names: dict[int, str]  # process -> its host and pid
    heartbeat_s: float
    silent: dict[int, float]  # lost process -> seconds without a sign of life
    left: dict[int, tuple[int, str]]  # process -> exit code and reason
    leaving: threading.Event  # this process ends by itself


_now: dict[str, Any] = {"joined": None, "starting": "", "turns": 0, "last_act": None}


# --- to start


def place(
    coordinator: str, num_processes: int, process_id: int, environment: Mapping
) -> Place | None:
    """Coordinator, number of processes and this one's index, of config or environment.

    "", 0 and -1 mean not given. None where neither names a coordinator: one process.
    Raises `UserError` where only some are given, or they contradict each other.
    """
    address = coordinator or environment.get(VARIABLES[0], "")
    if not address:
        if num_processes > 1 or process_id > 0:
            raise UserError(
                f"distributed.num_processes={num_processes}, distributed.process_id="
                f"{process_id}: and distributed.coordinator is empty, must be host:port"
            )
        return None
    if not re.fullmatch(r"\S+:\d{1,5}", address):
        raise UserError(
            f"distributed.coordinator={address}: must be host:port of process 0"
        )
    numbers = []
    for field, value, missing, variable in (
        ("num_processes", num_processes, 0, VARIABLES[1]),
        ("process_id", process_id, -1, VARIABLES[2]),
    ):
        setting = environment.get(variable, "") if value == missing else str(value)
        if not re.fullmatch(r"\d+", setting):
            raise UserError(
                f"distributed.coordinator={address}: and distributed.{field} or "
                f"{variable} is {setting!r}, must be a number"
            )
        numbers.append(int(setting))
    if not numbers[1] < numbers[0]:
        raise UserError(
            f"distributed.process_id={numbers[1]}: must be below "
            f"distributed.num_processes={numbers[0]}"
        )
    return Place(address, *numbers)


def join(
    *,
    coordinator: str,
    num_processes: int,
    process_id: int,
    auto: bool,
    heartbeat_s: float,
    start_timeout_s: float,
) -> None:
    """Connects to the other processes, if there are any, and starts to watch them.

    Call it before jax is asked for devices. auto: jax asks the cluster for what is not
    given. Raises `UserError` (or exits with 2, where the runtime aborts) if not all
    processes connect within `start_timeout_s`.
    """
    here = None
    if not auto:
        here = place(coordinator, num_processes, process_id, os.environ)
        if here is None:
            return
        if here.process_id:
            _wait_for_coordinator(here, start_timeout_s)
    # On CPUs only gloo works between processes; other devices ignore it.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    _now["starting"] = (
        f"distributed.coordinator={here.coordinator if here else '(found by jax)'}: "
        f"not all of the {here.num_processes if here else ''} processes came within "
        f"distributed.start_timeout_s = {start_timeout_s:g}"
    )
    _handle_abort()
    try:
        jax.distributed.initialize(
            here.coordinator if here else coordinator or None,
            here.num_processes if here else num_processes or None,
            here.process_id if here else (None if process_id < 0 else process_id),
            cluster_detection_method="deactivate" if here else None,
            initialization_timeout=round(start_timeout_s),
            heartbeat_timeout_seconds=max(1, round(heartbeat_s)),
        )
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        where = f"coordinator={here.coordinator}" if here else "auto=True"
        raise UserError(
            f"distributed.{where}: the processes cannot be joined: {reason}"
        ) from error
    state = runtime.global_state
    _watch_over(
        Place(str(state.coordinator_address), state.num_processes, state.process_id),
        heartbeat_s,
        start_timeout_s,
    )


def joined() -> bool:
    """Whether this process is connected to others."""
    return _now["joined"] is not None


def _wait_for_coordinator(here: Place, timeout_s: float) -> None:
    """Waits until process 0 listens; the runtime itself would abort with a C++
    trace."""
    host, _, port = here.coordinator.rpartition(":")
    until = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(
                    f"distributed.coordinator={here.coordinator}: process 0 does not "
                    f"answer there ({error.strerror or error}), for "
                    f"distributed.start_timeout_s = {timeout_s:g} s"
                ) from error
        time.sleep(0.2)


def _watch_over(here: Place, heartbeat_s: float, timeout_s: float) -> None:
    client = runtime.global_state.client
    assert client is not None
    key = lambda process: f"blue/who/{process}"
    client.key_value_set(
        key(here.process_id), f"{socket.gethostname()}, pid {os.getpid()}"
    )
    wait_ms = round(1000 * timeout_s)
    names = {
        process: client.blocking_key_value_get(key(process), wait_ms)
        for process in range(here.num_processes)
    }
    met = _Joined(client, here, names, heartbeat_s, {}, {}, threading.Event())
    _now.update(joined=met, starting="")
    threading.Thread(target=_watch, args=(met,), name="peers", daemon=True).start()
    members = "; ".join(f"process {n}: {name}" for n, name in names.items())
    logger.info("this is process %d of %d (%s)", here.process_id, len(names), members)


# --- the thread


def _watch(joined: _Joined) -> None:
    """Writes this process's signs of life, and reads those of the others."""
    client, me = joined.client, joined.place.process_id
    tick_s = min(1.0, joined.heartbeat_s / 10)
    heard = {p: ("", time.monotonic()) for p in joined.names if p != me}
    ends_at = None
    for count in range(sys.maxsize):
        if joined.leaving.wait(tick_s):
            return
        try:
            client.key_value_set(f"blue/alive/{me}", str(count), allow_overwrite=True)
            alive = _by_process(client.key_value_dir_get("blue/alive/"))
            left = _by_process(client.key_value_dir_get("blue/left/"))
        except Exception:  # process 0 has the store: without it the runtime aborts
            continue
        now = time.monotonic()
        for process, (sign, since) in heard.items():
            if alive.get(process, "") != sign:
                heard[process] = (alive[process], now)
                if joined.silent.pop(process, None):
                    logger.warning("%s is heard of again", _name(joined, process))
            elif now - since > joined.heartbeat_s / 2 and process not in left:
                if process not in joined.silent:
                    logger.error(
                        "LOST: %s has not been heard of for %.1f s; if it stays so, "
                        "this process ends after distributed.heartbeat_s = %g",
                        _name(joined, process), now - since, joined.heartbeat_s,
                    )  # fmt: skip
                joined.silent[process] = now - since
        for process in left.keys() - joined.left.keys() - {me}:
            joined.left[process] = _code_and_reason(left[process])
            reason = joined.left[process][1]
            logger.error("%s has ended: %s", _name(joined, process), reason)
            ends_at = ends_at or now + GRACE_S
        if ends_at and now > ends_at:
            _end(joined)


def _by_process(pairs: list[tuple[str, str]]) -> dict[int, str]:
    return {int(key.rpartition("/")[2]): value for key, value in pairs}


def _code_and_reason(text: str) -> tuple[int, str]:
    code, _, reason = text.partition(" ")
    return int(code), reason


def _name(joined: _Joined, process: int) -> str:
    return f"process {process} ({joined.names[process]})"


def _blame(joined: _Joined) -> tuple[int, str] | None:
    """Exit code and line if another process is the reason to end; else None."""
    if joined.left:
        process, (code, reason) = next(iter(joined.left.items()))
        return code, f"{_name(joined, process)} has ended, so this one does: {reason}"
    lost = sorted(joined.silent)
    if not lost and joined.place.process_id and not _answers(joined.place.coordinator):
        lost = [0]
    if not lost:
        return None
    names = ", ".join(_name(joined, process) for process in lost)
    return LOST, f"lost {names}: the newest checkpoint is kept; start all of them again"


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def set_last_act(act: Callable[[], None]) -> None:
    """Sets a function to call, in any thread, before this process ends due to
    another."""
    _now["last_act"] = act


def _end(joined: _Joined) -> None:
    """Ends the process at once, if another is the reason.

    Writes to the raw descriptor: the main thread may hold the logger's lock while it
    hangs in a collective.
    """
    blame = _blame(joined)
    if blame:
        if _now["last_act"]:
            with contextlib.suppress(Exception):
                _now["last_act"]()
        os.write(2, f"{blame[1]}\n".encode())
        os._exit(blame[0])


# --- the abort of the runtime


def _handle_abort() -> None:
    """Makes C call `_on_abort` before the runtime's abort ends the process."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGABRT, ctypes.cast(_C_ON_ABORT, ctypes.c_void_p))


def _on_abort(number: int) -> None:
    """Runs in the thread that aborts. If it returns, the signal ends the process."""
    if _now["starting"]:
        os.write(2, f"error: {_now['starting']}\n".encode())
        os._exit(2)
    if _now["joined"] is not None:
        _end(_now["joined"])


_C_ON_ABORT = ctypes.CFUNCTYPE(None, ctypes.c_int)(_on_abort)  # kept alive for C


# --- to wait for each other


def on_process_0(make: Callable[[], T]) -> T:
    """The result (JSON) of `make`, run in process 0 only, in every process.

    Called by every process. If it raises a `UserError`, all processes raise it.
    """
    if jax.process_count() == 1:
        return make()
    client = runtime.global_state.client
    assert client is not None
    _now["turns"] += 1
    key = f"blue/first/{_now['turns']}"
    if jax.process_index() == 0:
        try:
            value = make()
        except UserError as error:
            client.key_value_set(key, json.dumps({"error": str(error)}))
            raise
        client.key_value_set(key, json.dumps({"value": value}))
        return value
    while True:
        try:
            answer = json.loads(client.blocking_key_value_get(key, 1000))
            break
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]


def wait_for_all() -> None:
    """Waits until all processes call it, a day at most."""
    if jax.process_count() > 1:
        client = runtime.global_state.client
        assert client is not None
        _now["turns"] += 1
        client.wait_at_barrier(f"blue/meet/{_now['turns']}", 24 * 3600 * 1000)


def process_0_first(make: Callable[[], T]) -> T:
    """`make()` in process 0 first, then in the others, which find the files it
    wrote."""
    made: list[T] = []
    on_process_0(lambda: made.append(make()))
    return made[0] if made else make()


# --- to end


def end_process(code: int, why: str) -> int:
    """The last call of every process, with its exit code; returns the code to use.

    0: waits for the others. Any other code: writes the reason for the others, waits
    some seconds for them to end, and then ends here. A `CRASH` may be the effect of a
    lost process: waits for its name, and then ends with `LOST`.
    """
    met: _Joined | None = _now["joined"]
    if met is None:
        return code
    if code == CRASH:
        until = time.monotonic() + met.heartbeat_s
        while not (blame := _blame(met)) and time.monotonic() < until:
            time.sleep(0.1)
        if blame:
            code, why = blame
            sys.stderr.write(f"{why}\n")
    if code:
        met.leaving.set()
        _tell_and_wait(met, code, why)
    jax.distributed.shutdown()
    met.leaving.set()
    _now["joined"] = None
    return code


def _tell_and_wait(joined: _Joined, code: int, why: str) -> None:
    """Returns when all others are ending, too; else ends the process."""
    me, others = joined.place.process_id, joined.names.keys()
    until = time.monotonic() + GRACE_S
    with contextlib.suppress(Exception):  # the store ends with process 0
        joined.client.key_value_set(f"blue/left/{me}", f"{code} {why}")
        while time.monotonic() < until and not joined.silent:
            left = _by_process(joined.client.key_value_dir_get("blue/left/"))
            if left.keys() >= others:
                return
            time.sleep(0.1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
