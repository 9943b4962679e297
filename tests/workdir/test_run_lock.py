"""One run a workdir: who gets the lock, who is refused, who takes over."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from blue.errors import UserError
from blue.workdir import run_lock


def write_lock(folder, **fields):
    lock = {"run": "abc", "host": socket.gethostname(), "pid": os.getppid()}
    lock |= {"started": "then", "touched": time.time(), **fields}
    (folder / run_lock.NAME).write_text(json.dumps(lock))


def test_the_file_is_there_while_it_is_held_and_no_longer(tmp_path):
    folder = tmp_path / "new" / "run"
    for _ in range(2):
        with run_lock.hold(str(folder)):
            said = json.loads((folder / run_lock.NAME).read_text())
            assert said["pid"] == os.getpid() and said["host"] == socket.gethostname()
        assert list(folder.iterdir()) == []
    with pytest.raises(RuntimeError), run_lock.hold(str(folder)):
        raise RuntimeError
    assert list(folder.iterdir()) == []
    assert not [t for t in threading.enumerate() if t.name == "run lock"]


def test_a_live_run_keeps_a_second_one_out(tmp_path):
    write_lock(tmp_path)
    before = (tmp_path / run_lock.NAME).read_text()
    with pytest.raises(UserError) as caught, run_lock.hold(str(tmp_path)):
        pytest.fail("both run")
    said = str(caught.value)
    assert "\n" not in said and "run abc" in said and f"pid {os.getppid()}" in said
    assert f"pid {os.getpid()}" in said and "another --workdir" in said
    assert (tmp_path / run_lock.NAME).read_text() == before
    assert len(list(tmp_path.iterdir())) == 1
    write_lock(tmp_path, host="elsewhere", pid=1)  # whose processes nobody here sees
    with pytest.raises(UserError, match="elsewhere"), run_lock.hold(str(tmp_path)):
        pytest.fail("both run")


@pytest.mark.parametrize("age, lives", [(0, True), (299.5, False)])
def test_a_new_start_waits_for_a_sign_of_a_run_elsewhere(age, lives, tmp_path):
    touched = time.time() - age
    write_lock(tmp_path, host="elsewhere", touched=touched)
    path, later = epath.Path(tmp_path, run_lock.NAME), tmp_path / "later"
    later.mkdir()
    if lives:
        write_lock(later, host="elsewhere", touched=touched + 1)
        threading.Timer(0.1, (later / run_lock.NAME).replace, [path]).start()
    run_lock._wait_for_a_sign(path)
    found = json.loads(path.read_text())
    assert (found["touched"] > touched) == lives == run_lock._lives(found)


def gone():
    """The number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.parametrize(
    "fields",
    [
        {"touched": time.time() - 400, "host": "elsewhere"},
        {"pid": gone()},
        {"pid": os.getpid()},  # a container's only process has the same number again
        {"touched": None},
    ],
    ids=["untouched", "gone", "container", "damaged"],
)
def test_a_lock_whose_holder_is_gone_is_taken(fields, tmp_path, caplog):
    write_lock(tmp_path, **fields)
    with run_lock.hold(str(tmp_path)):
        said = json.loads((tmp_path / run_lock.NAME).read_text())
        assert said["run"] != "abc"
    assert "run abc" in caplog.text and "is gone" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_of_many_that_start_at_once_one_runs(tmp_path, monkeypatch):
    dead = gone()
    write_lock(tmp_path, pid=dead)
    # all are threads of this process, whose own number means a restart
    monkeypatch.setattr(run_lock, "_lives", lambda holder: holder["pid"] != dead)
    held, refused, start = [], [], threading.Barrier(8)
    ended = threading.Event()

    def run():
        start.wait()
        try:
            with run_lock.hold(str(tmp_path)):
                held.append(1)
                ended.wait(20)
        except UserError:
            refused.append(1)
            if len(refused) == 7:
                ended.set()

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)


def test_it_is_touched_and_a_lost_one_is_left_alone(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(run_lock, "TOUCH_S", 0.01)
    path = tmp_path / run_lock.NAME
    with run_lock.hold(str(tmp_path)):
        first = json.loads(path.read_text())["touched"]
        deadline = time.monotonic() + 20
        while json.loads(path.read_text())["touched"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        write_lock(tmp_path)
        while "not of this run" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert json.loads(path.read_text())["run"] == "abc"


def test_where_no_file_can_be_written_one_line_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write RUN.lock there"):
        with run_lock.hold(str(tmp_path / "file")):
            pytest.fail("it ran")
