"""SIGTERM: all hosts finish the same step, save it, and exit with code 75.

Schedulers reclaim a machine with SIGTERM and kill it some time later. The first signal
only sets a flag. Loops check it at points where every process has the same state
(`requested`), save, and raise `Preempted`. The process exits at once on a second
signal, or if the grace period ends before such a point, as in a long compilation. The
run then resumes from the newest committed checkpoint.
"""

import contextlib
import ctypes
import faulthandler
import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from blue.errors import Preempted

logger = logging.getLogger("blue")
EXIT_CODE = 75  # of sysexits.h: try again later

_asked = threading.Event()
_calls = itertools.count(1)  # points passed; the same number in every process


def requested() -> bool:
    """Whether to save and exit now.

    Every process calls it equally often, with the same state. With jax.distributed, a
    signal to any process makes this true for all at the same call:
    https://docs.jax.dev/en/latest/jax.experimental.multihost_utils.html
    """
    if jax.distributed.is_initialized():
        return multihost_utils.reached_preemption_sync_point(next(_calls))
    return _asked.is_set()


def leave_if_requested(saved: str) -> None:
    """Raises `Preempted` if asked to stop, where nothing has to be saved. `saved`: what
    the next run starts from, in words."""
    if requested():
        raise Preempted(f"{saved}; the same command continues")


@contextlib.contextmanager
def listening(grace_s: float) -> Iterator[None]:
    """Handles SIGTERM inside; `grace_s` seconds after the first the process exits.

    Call it in the main thread, after jax.distributed.initialize, whose handler it
    calls. A thread receives the signal: the main thread may compile for minutes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals only in the main thread
        return
    before, listener = signal.getsignal(signal.SIGTERM), _c_handler()
    hear, wake = os.pipe()
    os.set_blocking(wake, False)
    stop = threading.Event()
    tell = _callable(listener)
    arguments = (hear, grace_s, tell, stop)
    thread = threading.Thread(target=_listen, args=arguments, daemon=True)
    thread.start()
    signal.signal(signal.SIGTERM, lambda number, frame: _asked.set())
    former = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    leaving = False
    try:
        yield
    except Preempted:
        leaving = _asked.is_set()  # then everything stays until the process ends
        raise
    finally:
        if not leaving:
            stop.set()
            signal.set_wakeup_fd(former)
            os.close(wake)
            thread.join()  # it may be about to handle a signal
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
            if listener:
                _libc_signal(listener)
            _asked.clear()


def _listen(
    hear: int, grace_s: float, tell: Callable[[int], None], stop: threading.Event
) -> None:
    """The thread; each byte from `hear` is the number of a signal."""
    heard = False
    with os.fdopen(hear, "rb", buffering=0) as numbers:
        while data := numbers.read(1):
            if data[0] != signal.SIGTERM:
                continue
            if heard:
                _leave("a second SIGTERM", stacks=False)
            heard = True
            _asked.set()
            tell(signal.SIGTERM)
            logger.warning(
                "SIGTERM: leaving after this step, at the latest in %g s; a second one "
                "leaves at once",
                grace_s,
            )
            arguments = (grace_s, stop)
            threading.Thread(target=_wait, args=arguments, daemon=True).start()


def _wait(grace_s: float, stop: threading.Event) -> None:
    """Exits if the grace period ends before `stop` is set."""
    if not stop.wait(grace_s):
        _leave(f"preemption_grace_s = {grace_s:g} s after SIGTERM", stacks=True)


def _leave(why: str, *, stacks: bool) -> None:
    """Ends the process at once; writes to the raw descriptor, without locks."""
    line = f"preempted: {why}: leaving at once; the newest checkpoint is kept\n"
    os.write(2, line.encode())
    if stacks:
        faulthandler.dump_traceback(2, all_threads=True)
    os._exit(EXIT_CODE)


# --- the handler of jax.distributed, a C function that Python does not see


def _libc_signal(handler: int | None) -> int | None:
    """libc's signal(SIGTERM, handler); returns the address of the former handler."""
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    return libc.signal(signal.SIGTERM, handler)


def _c_handler() -> int | None:
    """The address of a SIGTERM handler that is neither a default nor Python's."""
    if not jax.distributed.is_initialized():
        return None
    found = _libc_signal(None)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    pythons = _libc_signal(None)
    return None if found in (None, 1, pythons) else found


def _callable(address: int | None) -> Callable[[int], None]:
    if address is None:
        return lambda number: None
    return ctypes.CFUNCTYPE(None, ctypes.c_int)(address)
