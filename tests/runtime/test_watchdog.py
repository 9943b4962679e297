import json
import os
import signal
import time

import pytest

from blue.runtime import watchdog
from tests.helpers.processes import end, start, wait_for

HANG = """
import sys, threading, time
from blue.runtime import watchdog
def stuck_in_a_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
watchdog.TICK_S = 0.05
with watchdog.watching(sys.argv[1], {"compile": 0, "rollout": 0.5}):
    with watchdog.phase("compile"):
        time.sleep(1)  # no limit
    for step in range(10):
        watchdog.sign_of_life("rollout", step=step, stage="profiler")
        time.sleep(0.1)  # longer than the limit, but alive
    print("alive", flush=True)
    stuck_in_a_lock()
"""


def test_a_hang_ends_with_71_and_the_stacks(tmp_path):
    process = start(HANG, tmp_path)
    wait_for(process, "alive")
    code, errors = end(process)
    assert code == 71
    assert "phase rollout" in errors and "watchdog.rollout = 0.5" in errors
    (file,) = tmp_path.glob(f"hang-*-{process.pid}.txt")
    for told in (errors, file.read_text()):
        assert "stuck_in_a_lock" in told and "_watch" in told  # all threads


def read(path):
    return json.loads(path.read_text())


def test_the_heartbeat_says_where_the_run_is(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "TICK_S", 0.01)
    monkeypatch.setattr(watchdog, "HEARTBEAT_S", 0.01)
    path = tmp_path / "heartbeat.json"
    with watchdog.watching(tmp_path, {"update": 1000.0}):
        watchdog.sign_of_life("update", step=7, stage="profiler")
        with watchdog.phase("compile"):
            wait_until(lambda: path.exists() and read(path)["phase"] == "compile")
        wait_until(lambda: read(path)["phase"] == "update")
        found = read(path)
        assert (found["stage"], found["step"]) == ("profiler", 7)
        assert found["status"] == "running" and found["pid"] == os.getpid()
        assert abs(found["time"] - time.time()) < 60
        wait_until(lambda: read(path)["quiet_s"] > 0)
    assert read(path)["status"] == "done"
    assert [p.name for p in tmp_path.iterdir()] == ["heartbeat.json"]


def test_each_of_several_processes_has_its_own_heartbeat(tmp_path):
    with pytest.raises(KeyError), watchdog.watching(tmp_path, {}, process=1):
        raise KeyError
    assert read(tmp_path / "heartbeat-1.json")["status"] == "stopped"


def test_a_heartbeat_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    with watchdog.watching(tmp_path / "no" / "folder", {}):
        pass
    assert "no heartbeat" in caplog.text


def test_a_process_that_was_stopped_for_a_while_did_not_hang(tmp_path):
    script = """
import sys, time
from blue.runtime import watchdog
watchdog.TICK_S = 0.05
with watchdog.watching(sys.argv[1], {"update": 1.0}):
    watchdog.sign_of_life("update")
    print("ready", flush=True)
    sys.stdin.read(1)
"""
    process = start(script, tmp_path, stdin=True)
    wait_for(process, "ready")
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    process.stdin.write("x")
    process.stdin.flush()
    assert end(process)[0] == 0


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
