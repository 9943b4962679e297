"""Errors of a full, read-only or missing disk in one line, not a traceback."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from blue.errors import UserError

ADVICE = {  # for errors of the disk
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room, or have the quota raised",
    errno.EROFS: "make it writable",
    errno.EIO: "have the disk looked at",
    errno.ESTALE: "mount it again",
}


@contextlib.contextmanager
def disk_errors_in_one_line(workdir: str) -> Iterator[None]:
    """Turns such an `OSError` into a `UserError`; others keep their traceback."""
    try:
        yield
    except OSError as error:
        gone = "://" not in workdir and not Path(workdir).is_dir()
        advice = ADVICE.get(error.errno or 0, "bring it back" if gone else "")
        if not advice:
            raise
        where = os.fspath(error.filename) if error.filename else workdir
        raise UserError(
            f"--workdir={workdir}: {where}: {error.strerror}; the checkpoints there "
            f"are as they were: {advice}, and start the same command again"
        ) from error
