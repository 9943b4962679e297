"""Whole or not at all: on a disk, in a bucket, after an exception and after a kill."""

import importlib
import os
import signal
import stat
import subprocess
import sys

import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from blue.runtime import files


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path, monkeypatch):
    """A directory on the disk, and a fake gs:// in memory."""
    if request.param == "disk":
        yield epath.Path(tmp_path)
        return
    known = importlib.import_module("fsspec.registry")._registry
    monkeypatch.setitem(known, "gcs", MemoryFileSystem)
    folder = epath.Path("gs://bucket/run")
    folder.mkdir(parents=True)
    yield folder
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_by_another(folder):
    for text in ("one\n", "zwei €\n"):
        files.write_text(folder / "a.json", text)
        assert (folder / "a.json").read_bytes() == text.encode()
    files.write_bytes(folder / "a.json", b"\xff", durable=False)
    assert (folder / "a.json").read_bytes() == b"\xff"
    assert names(folder) == ["a.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_what_was_there(folder, error):
    files.write_text(folder / "a", "old")
    with files.whole_directory(folder / "d") as draft:
        (draft / "x").write_text("old")
    with pytest.raises(error), files.whole_file(folder / "a") as draft:
        draft.write_text("ne")
        raise error
    with pytest.raises(error), files.whole_directory(folder / "d") as draft:
        (draft / "x").write_text("ne")
        raise error
    assert names(folder) == ["a", "d"]
    assert (folder / "a").read_text() == (folder / "d" / "x").read_text() == "old"


def test_a_directory_is_replaced_by_another(folder):
    for name in ("one", "two"):
        with files.whole_directory(folder / "new" / "d") as draft:
            assert not (folder / "new" / "d" / name).exists()
            (draft / "below").mkdir(parents=True)
            (draft / "below" / name).write_text(name)
        assert names(folder / "new") == ["d"]
        assert names(folder / "new" / "d" / "below") == [name]


def test_what_a_kill_left_is_gone_after_the_next_writing(folder):
    (folder / ".a.draft").write_text("half of a file")
    (folder / ".d.draft").mkdir()
    (folder / ".d.draft" / "rubbish").write_text("")
    files.write_text(folder / "a", "new")
    with files.whole_directory(folder / "d") as draft:
        (draft / "x").write_text("new")
    assert names(folder) == ["a", "d"]
    assert names(folder / "d") == ["x"]


def test_a_directory_moved_away_by_a_kill_comes_back_first(folder):
    """Killed between the renames, and the writing after it fails, too."""
    (folder / ".d.old").mkdir()
    (folder / ".d.old" / "x").write_text("old")
    with pytest.raises(ValueError), files.whole_directory(folder / "d"):
        raise ValueError
    assert names(folder) == ["d"]
    assert (folder / "d" / "x").read_text() == "old"


def test_an_error_between_the_renames_brings_the_old_directory_back(
    tmp_path, monkeypatch
):
    with files.whole_directory(tmp_path / "d") as draft:
        (draft / "x").write_text("old")
    rename = type(draft).rename

    def fails(path, to):
        if path.name == ".d.draft":
            raise OSError("disk full")
        return rename(path, to)

    monkeypatch.setattr(type(draft), "rename", fails)
    with (
        pytest.raises(OSError, match="disk full"),
        files.whole_directory(draft.parent / "d"),
    ):
        pass
    assert names(epath.Path(tmp_path)) == ["d"]
    assert (tmp_path / "d" / "x").read_text() == "old"


def test_other_processes_get_the_path_and_change_nothing(tmp_path):
    (tmp_path / ".d.draft").mkdir()
    (tmp_path / ".d.draft" / "of_the_first_process").write_text("")
    with files.whole_directory(tmp_path / "d", writes=False) as draft:
        assert names(draft) == ["of_the_first_process"]
    assert names(epath.Path(tmp_path)) == [".d.draft"]


def test_private_ones_are_so_from_the_first_byte(tmp_path):
    (tmp_path / "a").write_text("readable by all")
    (tmp_path / ".a.draft").write_text("readable by all")
    before = os.umask(0o022)
    try:
        with files.whole_file(tmp_path / "a", private=True) as draft:
            assert mode(draft) == 0o600 and draft.read_bytes() == b""
            draft.write_text("private")
        with files.whole_directory(tmp_path / "d", private=True) as draft:
            assert mode(draft) == 0o700
        files.write_text(tmp_path / "b", "")
        files.write_text(tmp_path / "c", "", private=True)
        with files.whole_directory(tmp_path / "e"):
            pass
    finally:
        os.umask(before)
    found = {path.name: mode(path) for path in tmp_path.iterdir()}
    assert found == {"a": 0o600, "b": 0o644, "c": 0o600, "d": 0o700, "e": 0o755}


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """But for signs of life, which a power cut makes worthless anyway."""
    events = []
    fsync, replace = os.fsync, os.replace
    at = lambda descriptor: os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
    monkeypatch.setattr(os, "fsync", lambda d: (events.append(at(d)), fsync(d)))
    monkeypatch.setattr(os, "replace", lambda *a: (events.append("name"), replace(*a)))
    files.write_text(tmp_path / "a", "x")
    files.write_text(tmp_path / "RUN.lock", "x", durable=False)
    assert events == [".a.draft", "name", "name"]
    events.clear()
    with files.whole_directory(tmp_path / "d") as draft:
        (draft / "below").mkdir()
        (draft / "below" / "x").write_text("")
    assert events == [".d.draft", "x", "below"]


KILLED = """
import os, signal, sys
from blue.runtime import files

path = sys.argv[1]
with files.whole_file(path + "/a", private=True) as draft, draft.open("wb") as file:
    with files.whole_directory(path + "/d") as folder:
        (folder / "x").write_text("half")
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_in_the_middle_the_old_ones_stand(tmp_path):
    files.write_text(tmp_path / "a", "old")
    with files.whole_directory(tmp_path / "d") as draft:
        (draft / "x").write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "a").read_text() == (tmp_path / "d" / "x").read_text() == "old"
    assert names(epath.Path(tmp_path)) == [".a.draft", ".d.draft", "a", "d"]
    assert mode(tmp_path / ".a.draft") == 0o600
    files.write_text(tmp_path / "a", "new")
    with files.whole_directory(tmp_path / "d") as draft:
        (draft / "x").write_text("new")
    assert (tmp_path / "a").read_text() == (tmp_path / "d" / "x").read_text() == "new"
    assert names(epath.Path(tmp_path)) == ["a", "d"]


def test_two_writers_of_one_path_have_drafts_of_their_own(tmp_path):
    path = tmp_path / "RUN.lock"
    with files.whole_file(path, mark="1") as one, files.whole_file(path) as two:
        one.write_text("1")
        two.write_text("2")
    assert path.read_text() == "1"  # renamed last
    assert names(epath.Path(tmp_path)) == ["RUN.lock"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError):
        files.write_text(tmp_path / "missing" / "a", "")
    assert not list(tmp_path.iterdir())
