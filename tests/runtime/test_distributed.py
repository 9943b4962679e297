"""Several processes are one run: same numbers, one writer, no waiting for the dead."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from blue.errors import UserError
from blue.runtime import distributed
from tests.helpers import grpo_steps
from tests.helpers.processes import ROOT

WHOLE = [  # python -m blue.main of the quickstart, cut down
    f"--config={ROOT}/configs/quickstart.py:tiny",
    "--config.evaluate.bootstrap=50",
    "--config.evaluate.protocols=1+99",
]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(arguments, log, devices=4, **environment):
    """`python ARGUMENTS` with so many CPU devices; its output goes to file `log`."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    environment = os.environ | {"XLA_FLAGS": flags} | environment
    with open(log, "w") as output:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=environment | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip


def start_main(workdir, log, *flags, count=2, devices=4):
    """The processes of one run of `blue.main`; their output in LOG.0, LOG.1."""
    address, started = f"127.0.0.1:{free_port()}", []
    for index in range(count):
        several = [
            f"--config.distributed.coordinator={address}",
            f"--config.distributed.num_processes={count}",
            f"--config.distributed.process_id={index}",
        ]
        started.append(
            start(
                ["-m", "blue.main", f"--workdir={workdir}", *WHOLE, *flags]
                + several * (count > 1),
                f"{log}.{index}",
                devices,
            )
        )
    return started


def codes(processes, timeout=300):
    """Exit codes; whoever has not ended by then is killed."""
    until = time.monotonic() + timeout
    try:
        return [p.wait(max(0.1, until - time.monotonic())) for p in processes]
    finally:
        for process in processes:
            process.kill()


def text(log, index=0):
    with open(f"{log}.{index}") as file:
        return file.read()


# --- where a process stands


def test_config_wins_over_environment():
    variables = dict(zip(distributed.VARIABLES, ("a:1", "4", "3"), strict=True))
    assert distributed.place("", 0, -1, {}) is None
    assert distributed.place("", 0, -1, variables) == ("a:1", 4, 3)
    assert distributed.place("b:2", 2, 0, variables) == ("b:2", 2, 0)


@pytest.mark.parametrize(
    "given, words",
    [
        (("", 2, 0), "coordinator is empty"),
        (("host", 2, 0), "must be host:port"),
        (("a:1", 0, 0), "num_processes or JAX_NUM_PROCESSES is ''"),
        (("a:1", 2, -1), "process_id or JAX_PROCESS_ID is ''"),
        (("a:1", 2, 2), "process_id=2: must be below distributed.num_processes=2"),
    ],
)
def test_half_of_it_is_refused(given, words):
    with pytest.raises(UserError, match=words):
        distributed.place(*given, {})


def test_alone_there_is_nobody_to_wait_for():
    assert not distributed.joined()
    assert distributed.on_process_0(lambda: 3) == 3
    assert distributed.process_0_first(lambda: 3) == 3
    assert distributed.end_process(2, "error") == 2


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_who_finds_nobody_says_so_and_ends_with_2(index, tmp_path):
    place = (f"127.0.0.1:{free_port()}", "2", str(index))
    flags = [
        f"--config.distributed.{field}={value}"
        for field, value in zip(("coordinator", "num_processes"), place, strict=False)
    ]
    process = start(
        ["-m", "blue.main", f"--workdir={tmp_path}/run", *WHOLE, *flags]
        + ["--config.distributed.start_timeout_s=1"],
        f"{tmp_path}/log.0",
        JAX_PROCESS_ID=str(index),
    )
    assert codes([process], 60) == [2]
    (line,) = re.findall("^error: .*", text(tmp_path / "log"), re.M)
    assert place[0] in line and "start_timeout_s = 1" in line
    assert not (tmp_path / "run").exists()


# --- the same numbers


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Arrays of GRPO steps in one process of eight devices, and in two of four."""
    folder = tmp_path_factory.mktemp("steps")
    place = f"127.0.0.1:{free_port()}", 2
    processes = [
        start(
            ["-m", "tests.helpers.grpo_steps", folder / "two.npz", *place, index],
            folder / f"log.{index}",
        )
        for index in range(2)
    ]
    one = grpo_steps.run()
    assert codes(processes) == [0, 0], text(folder / "log") + text(folder / "log", 1)
    return one, dict(np.load(folder / "two.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("step", range(grpo_steps.STEPS))
def test_two_processes_of_four_devices_do_the_step_of_one_of_eight(step, steps):
    """The first samples its tokens, later ones are given theirs."""
    one, two = steps
    assert one.keys() == two.keys()
    names = [name for name in one if name.startswith(f"{step}/")]
    assert len(names) > 20
    for name in names:
        np.testing.assert_allclose(
            two[name], one[name], atol=1e-5, rtol=1e-5, err_msg=name
        )
    assert one[f"{step}/metrics/optim/grad_norm"] > 1e-3
    assert one[f"{step}/metrics/optim/skipped"] == 0


# --- one ends, all end

TOGETHER = """
import sys, time
from blue import main
from blue.runtime import distributed
from blue.workdir import run_lock
from blue.errors import UserError

distributed.GRACE_S = 1.0

def run(argv):
    distributed.join(coordinator=argv[1], num_processes=2, process_id=int(argv[2]),
                     auto=False, heartbeat_s=6.0, start_timeout_s=60.0)
    me = int(argv[2])
    slowly = lambda: time.sleep(1.5) or [me, "told"]
    assert distributed.on_process_0(slowly) == [0, "told"]
    path = argv[4]
    assert distributed.process_0_first(lambda: open(path, "a").write("x")) == 1
    if argv[3] == "error":
        def refuse():
            raise UserError("not like this")
        distributed.on_process_0(refuse)
    if argv[3] == "workdir":
        run_lock.SEEN_S = 0.5
        with run_lock.hold(f"{path}-{me}"):
            time.sleep(100)
    if argv[3] == "crash" and me == 1:
        raise RuntimeError("a bug")
    if argv[3] == "crash":
        time.sleep(100)  # in a collective that never comes

main.run = run
sys.exit(main.main(sys.argv))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "way, code, said",
    [
        ("well", 0, "this is process"),
        ("error", 2, "error: not like this"),
        ("workdir", 2, "does not see RUN.lock of process 0"),
        ("crash", 1, "RuntimeError: a bug"),
    ],
)
def test_all_end_with_the_code_of_the_first(way, code, said, tmp_path, monkeypatch):
    address = f"127.0.0.1:{free_port()}"
    processes = [
        start(["-c", TOGETHER, address, i, way, tmp_path / "x"], tmp_path / f"log.{i}")
        for i in range(2)
    ]
    told = lambda: text(tmp_path / "log") + text(tmp_path / "log", 1)
    assert codes(processes, 60) == [code, code], told()
    assert said in text(tmp_path / "log") and said in text(tmp_path / "log", 1)
    assert (tmp_path / "x").read_text() == "xx"


# --- whole runs

SHORT = ("--config.stages=profiler", "--config.log.tensorboard=False")


def wait_for_step(workdir, processes, step, timeout=240):
    """Until metrics.jsonl has that step."""
    path, until = workdir / "metrics.jsonl", time.monotonic() + timeout
    while not path.exists() or f'"step": {step},' not in path.read_text():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < until
        time.sleep(0.1)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(root):
    """Relative names, without what is named after a moment."""
    names = (p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    skip = ("checkpoints/", "tensorboard/", "heartbeat", "items/")
    return {name for name in names if not name.startswith(skip)}


@pytest.mark.slow
def test_a_whole_run_of_two_processes_is_that_of_one(tmp_path):
    stages = "--config.stages=encoder,warm_start,profiler,write_profiles,evaluate"
    two = start_main(tmp_path / "two", tmp_path / "log2", stages)
    assert codes(two, 500) == [0, 0], text(tmp_path / "log2")[-3000:]
    one = start_main(tmp_path / "one", tmp_path / "log1", stages, count=1, devices=8)
    assert codes(one, 500) == [0], text(tmp_path / "log1")[-3000:]
    assert files(tmp_path / "two") == files(tmp_path / "one")
    events = lambda name: len(list((tmp_path / name / "tensorboard").rglob("events*")))
    assert events("two") == events("one")
    for name in ("metrics.jsonl", "samples.jsonl", "profiles.jsonl"):
        found, wanted = (rows(tmp_path / where / name) for where in ("two", "one"))
        assert len(found) == len(wanted), name
        for row, want in zip(found, wanted, strict=True):
            assert row.keys() == want.keys()
            if name == "metrics.jsonl":
                close_numbers(row, want)
            else:
                assert row["profile"] == want["profile"]
    found, wanted = (
        json.loads((tmp_path / where / "evaluation.json").read_text())
        for where in ("two", "one")
    )
    assert found == wanted  # ranks, and what follows from them
    again = start_main(tmp_path / "two", tmp_path / "log3", stages)
    assert codes(again, 300) == [0, 0]
    assert text(tmp_path / "log3", 1).count("is finished already: skipped") == 3


def close_numbers(row, want):
    for key, value in want.items():
        if not key.startswith(("time/", "speed/")) and isinstance(value, float):
            np.testing.assert_allclose(
                row[key], value, atol=1e-5, rtol=1e-4, err_msg=f"{want['step']} {key}"
            )


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_lost_process_is_named_and_the_others_end(killed, tmp_path):
    flags = (*SHORT, "--config.num_steps=500", "--config.eval_every=0")
    limit = "--config.distributed.heartbeat_s=20"  # a slow machine is no dead one
    two = start_main(tmp_path / "run", tmp_path / "log", *flags, limit)
    try:
        wait_for_step(tmp_path / "run", two, 3)
    finally:
        two[killed].kill()
    two[killed].wait()
    at = time.monotonic()
    assert codes([two[1 - killed]], 60) == [75], text(tmp_path / "log", 1 - killed)
    assert time.monotonic() - at < 20 + 20
    said = text(tmp_path / "log", 1 - killed)
    named = rf"lost process {killed} \([\w.-]+, pid {two[killed].pid}\)"
    assert re.search(named, said), said[-3000:]
    assert killed == 0 or "LOST: process 1 (" in said
    assert (tmp_path / "run/RUN.lock").exists() == (killed == 0)  # nobody was left to

    done = rows(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
    flags = (*SHORT, f"--config.num_steps={done + 3}", "--config.eval_every=0")
    again = start_main(tmp_path / "run", tmp_path / "again", *flags)
    assert codes(again) == [0, 0], text(tmp_path / "again")[-3000:]
    (resumed,) = re.findall(r"resumed at step (\d+)", text(tmp_path / "again"))
    assert done - 1 <= int(resumed) <= done + 1
    steps = [row["step"] for row in rows(tmp_path / "run" / "metrics.jsonl")]
    assert steps == list(range(done + 3))


@pytest.mark.slow
def test_a_signal_to_one_has_all_save_the_same_step(tmp_path):
    flags = (*SHORT, "--config.num_steps=500", "--config.checkpoint_every=400")
    flags += ("--config.eval_every=0", "--config.preemption_grace_s=120")
    two = start_main(tmp_path / "run", tmp_path / "log", *flags)
    try:
        wait_for_step(tmp_path / "run", two, 2)
    finally:
        two[1].send_signal(signal.SIGTERM)
    assert codes(two, 120) == [75, 75], text(tmp_path / "log")[-3000:]
    saved = [
        re.findall(r"preempted: step (\d+) is saved", text(tmp_path / "log", index))
        for index in range(2)
    ]
    assert saved[0] == saved[1] and len(saved[0]) == 1
    folder = tmp_path / "run/checkpoints/profiler"
    assert (folder / saved[0][0] / "commit_success.txt").exists()
