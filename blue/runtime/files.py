"""Files and directories that are written whole or not at all.

A reader finds the former content or the new one, never a part of it. Everything is
written under another name beside the path, and renamed at the end.

* An exception removes what was written so far; the path is unchanged.
* A kill leaves .NAME.draft behind. The next write to the same path removes it.
* A directory cannot be replaced in one step. A kill between the two renames leaves the
  former one as .NAME.old, and the next write first restores it.
* In a bucket (gs://) a directory is renamed file by file: a kill may leave a part of
  it. Buckets have no file modes; their own rules say who may read.
* What was written is on the disk before the rename (fsync). Some file systems would
  otherwise rename first, and leave an empty file after a power cut. `durable=False` is
  for signs of life, which are rewritten every few seconds.

A path has one writer at a time: process 0 of the run that holds the workdir's lock.

It is in the lowest room because the watchdog and the prepared data use it, too.
"""

import contextlib
import os
from collections.abc import Iterator

from etils import epath

PathLike = str | os.PathLike[str]


def write_text(
    path: PathLike, text: str, *, private: bool = False, durable: bool = True
) -> None:
    """Writes `text` as UTF-8; the options are those of `whole_file`."""
    write_bytes(path, text.encode(), private=private, durable=durable)


def write_bytes(
    path: PathLike, content: bytes, *, private: bool = False, durable: bool = True
) -> None:
    """Writes `content`; the options are those of `whole_file`."""
    with whole_file(path, private=private, durable=durable) as draft:
        draft.write_bytes(content)


@contextlib.contextmanager
def whole_file(
    path: PathLike, *, private: bool = False, durable: bool = True, mark: str = ""
) -> Iterator[epath.Path]:
    """Yields the path to write to; at the end that file becomes `path`.

    Args:
        path: local or gs://; its folder exists.
        private: only the owner may read it (mode 0600), from the first byte on.
        durable: it survives a power cut.
        mark: distinguishes the draft from those of other processes that write to
            `path`.

    Raises:
        OSError: it cannot be written.
    """
    path = epath.Path(path)
    draft = path.parent / f".{path.name}{mark and f'.{mark}'}.draft"
    draft.unlink(missing_ok=True)
    try:
        if private and not _in_bucket(draft):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            os.close(os.open(draft, flags, 0o600))
        yield draft
        if durable and not _in_bucket(draft):
            _sync(draft)
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_directory(
    path: PathLike, *, private: bool = False, writes: bool = True
) -> Iterator[epath.Path]:
    """Yields an empty directory to write into; at the end it becomes `path`.

    An existing directory at `path` is replaced.

    Args:
        path: local or gs://; folders above it are made.
        private: only the owner may enter it (mode 0700).
        writes: False in a process that only takes part while another one writes. It
            gets the same path, which may not exist for it, and changes nothing.

    Raises:
        OSError: it cannot be written.
    """
    path = epath.Path(path)
    draft, old = (path.parent / f".{path.name}.{end}" for end in ("draft", "old"))
    if not writes:
        yield draft
        return
    if old.exists():
        old.rmtree() if path.exists() else old.rename(path)
    if draft.exists():
        draft.rmtree()
    try:
        local_mode = 0o700 if private and not _in_bucket(draft) else None
        draft.mkdir(mode=local_mode, parents=True)
        yield draft
        if not _in_bucket(draft):
            for folder, _, names in os.walk(draft):
                for name in (*names, "."):
                    _sync(os.path.join(folder, name))
        if path.exists():
            path.rename(old)
        draft.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            if draft.exists():
                draft.rmtree()
            if old.exists() and not path.exists():
                old.rename(path)
        raise
    if old.exists():
        old.rmtree()


def _in_bucket(path: epath.Path) -> bool:
    return "://" in os.fspath(path)


def _sync(path: PathLike) -> None:
    """Waits until a file or directory is on the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
