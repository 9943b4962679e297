"""Programs that were compiled before are read from disk, not compiled again.

XLA's persistent cache, https://docs.jax.dev/en/latest/persistent_compilation_cache.html.
A program is read as it was written, so results are the same bits with and without.
Whoever can write to the directory can run code here: it is made for its owner alone.

It is unused on several CPU devices. There, programs with collectives that were read
back wait for one another in different orders, and abort (seen with jaxlib 0.10.2).
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
CHECKED = ".checked"  # entries older than this file were found whole

hits = {"count": 0, "seconds": 0.0}  # of the whole process: programs read, not compiled
_lock = threading.Lock()  # programs compile in several threads


def _count_hit(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event == "/jax/compilation_cache/cache_retrieval_time_sec":
        with _lock:
            hits["count"] += 1
            hits["seconds"] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_count_hit)


def use(directory: str) -> None:
    """Reads and writes compiled programs there; after the devices are known.

    directory: local or gs://; "": no cache. Of several processes the first writes, so
    a directory that all of them see serves all. A directory that jax was given already
    (JAX_COMPILATION_CACHE_DIR) stays, and so do its limits on what is kept. One that
    cannot be written costs a warning and no more.
    """
    config: Any = jax.config  # its type does not know its fields
    if config.jax_compilation_cache_dir or not directory:
        return
    if "://" not in directory:
        directory = os.path.expanduser(directory)
    if jax.default_backend() == "cpu":
        if jax.device_count() > 1:
            logger.info("compile_cache: not used on %d CPU devices", jax.device_count())
            return
        # code for this very CPU: a home directory may be mounted on several
        directory = f"{directory}/cpu-{_cpu_fingerprint()}"
    try:
        _try_to_write(directory)
        if "://" not in directory:
            remove_torn(Path(directory))
    except Exception as error:  # of whatever file system it is
        reason = str(error).partition("\n")[0]
        logger.warning("compile_cache=%s: not used: %s", directory, reason)
        return
    jax.config.update("jax_compilation_cache_dir", directory)
    # everything: a second run is to compile nothing at all
    for name, value in (
        ("jax_persistent_cache_min_compile_time_secs", 0.0),
        ("jax_persistent_cache_min_entry_size_bytes", -1),
    ):
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def _try_to_write(directory: str) -> None:
    """Makes the directory, and a file in it that is gone afterwards."""
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
    """Removes entries that were cut short, as by a kill while they were written.

    jax would skip such an entry for ever: it neither reads it nor writes it anew. Each
    entry is checked once, at the start after it was written.
    """
    mark = directory / CHECKED
    since = mark.stat().st_mtime_ns if mark.exists() else 0
    mark.touch()  # before the look: what is written meanwhile comes next time
    for path in directory.glob("*-cache"):
        try:
            if path.stat().st_mtime_ns >= since and not _is_whole(path.read_bytes()):
                path.unlink()
                logger.info("%s: cut short, removed", path)
        except FileNotFoundError:
            continue  # another run was faster


def _is_whole(entry: bytes) -> bool:
    """Whether its checksum fits; of compressions other than zlib nothing is known."""
    if entry[:1] != b"\x78":
        return bool(entry)
    try:
        zlib.decompress(entry)
    except zlib.error:
        return False
    return True


def _cpu_fingerprint() -> str:
    """The same for CPUs of one model with the same instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        names = ("model name", "flags", "Features", "CPU part")
        told = [line for line in lines if line.startswith(names)]
    except OSError:
        told = []
    told.append(f"{platform.machine()} {platform.processor()}")
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]
