"""The cache of compiled programs on disk.

XLA's persistent cache,
https://docs.jax.dev/en/latest/persistent_compilation_cache.html. A cached program is
the compiled one, so results are bitwise the same with and without.

Whoever can write to the directory can run code here: it is private to its owner. It is
unused on several CPU devices. There, cached programs with collectives wait for one
another in different orders, and abort (seen with jaxlib 0.10.2).
"""

import hashlib
import logging
import os
import platform
import tempfile
import threading
import uuid
import zlib
from pathlib import Path
from typing import Any

import jax
from etils import epath

logger = logging.getLogger("blue")
CHECKED = ".checked"  # entries older than this file are checked

hits = {"count": 0, "seconds": 0.0}  # of the process: programs read from the cache
_lock = threading.Lock()  # programs compile in several threads


def _count_hit(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event == "/jax/compilation_cache/cache_retrieval_time_sec":
        with _lock:
            hits["count"] += 1
            hits["seconds"] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_count_hit)


def use(directory: str) -> None:
    """Sets the directory of compiled programs; call it after the devices are known.

    directory: local or gs://; "": no cache. Of several processes the first writes, so a
    shared directory is enough. A directory set by JAX_COMPILATION_CACHE_DIR stays, with
    its limits. If the directory cannot be written, a warning is logged.
    """
    config: Any = jax.config  # its type lacks the fields
    if config.jax_compilation_cache_dir or not directory:
        return
    if "://" not in directory:
        directory = os.path.expanduser(directory)
    if jax.default_backend() == "cpu":
        if jax.device_count() > 1:
            logger.info("compile_cache: not used on %d CPU devices", jax.device_count())
            return
        # code for this CPU: a home directory may be shared with others
        directory = f"{directory}/cpu-{_cpu_fingerprint()}"
    try:
        _try_to_write(directory)
        if "://" not in directory:
            remove_torn(Path(directory))
    except Exception as error:  # file systems raise different types
        reason = str(error).partition("\n")[0]
        logger.warning("compile_cache=%s: not used: %s", directory, reason)
        return
    jax.config.update("jax_compilation_cache_dir", directory)
    # all programs: a second run compiles nothing
    for name, value in (
        ("jax_persistent_cache_min_compile_time_secs", 0.0),
        ("jax_persistent_cache_min_entry_size_bytes", -1),
    ):
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def _try_to_write(directory: str) -> None:
    """Makes the directory, writes a file in it and removes the file."""
    if "://" in directory:
        file = epath.Path(directory) / f".try-{uuid.uuid4()}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
        file.unlink()
        return
    os.makedirs(directory, mode=0o700, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
        pass


def remove_torn(directory: Path) -> None:
    """Removes incomplete entries, left by a kill while they were written.

    jax would skip such an entry for ever: it neither reads nor replaces it. Each entry
    is checked once, at the next start.
    """
    mark = directory / CHECKED
    since = mark.stat().st_mtime_ns if mark.exists() else 0
    mark.touch()  # before checking: newer entries are checked next time
    for path in directory.glob("*-cache"):
        try:
            if path.stat().st_mtime_ns >= since and not _is_whole(path.read_bytes()):
                path.unlink()
                logger.info("%s: cut short, removed", path)
        except FileNotFoundError:
            continue  # another run removed it


def _is_whole(entry: bytes) -> bool:
    """Whether the checksum is right; True for compressions other than zlib."""
    if entry[:1] != b"\x78":
        return bool(entry)
    try:
        zlib.decompress(entry)
    except zlib.error:
        return False
    return True


def _cpu_fingerprint() -> str:
    """Equal for CPUs of one model with the same instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        names = ("model name", "flags", "Features", "CPU part")
        facts = [line for line in lines if line.startswith(names)]
    except OSError:
        facts = []
    facts.append(f"{platform.machine()} {platform.processor()}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
