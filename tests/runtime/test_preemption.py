import signal
import threading

import pytest

from blue.errors import Preempted
from blue.runtime import preemption
from blue.workdir.checkpoints import Checkpoints
from tests.helpers.processes import end, start, start_two, wait_for

# --- one process


def test_without_a_signal_nothing_is_requested():
    before = signal.getsignal(signal.SIGTERM)
    threads = threading.active_count()
    with preemption.listening(60.0):
        assert not preemption.requested()
        preemption.leave_if_requested("not said")
    assert signal.getsignal(signal.SIGTERM) == before
    assert threading.active_count() == threads


def test_a_signal_is_seen_at_the_next_point_and_forgotten_afterwards():
    with preemption.listening(60.0):
        signal.raise_signal(signal.SIGTERM)
        assert preemption.requested()
        with pytest.raises(Preempted, match="all of it is saved; the same command"):
            preemption.leave_if_requested("all of it is saved")
    assert not preemption.requested()


BUSY = """
import time
from blue.runtime import preemption
with preemption.listening({grace_s}):
    print("ready", flush=True)
    while True:
        if preemption.requested():
            print("seen", flush=True)
            time.sleep(100)  # stands for a compilation
        time.sleep(0.01)
"""


def test_a_process_that_cannot_stop_leaves_after_the_grace_period():
    process = start(BUSY.format(grace_s=0.2))
    wait_for(process, "ready")
    process.send_signal(signal.SIGTERM)
    code, errors = end(process)
    assert code == 75
    assert "0.2 s after SIGTERM" in errors and "Current thread" in errors
    assert 'File "<string>", line 9' in errors  # where it was busy


def test_a_second_signal_ends_it_at_once():
    process = start(BUSY.format(grace_s=1000))
    wait_for(process, "ready")
    process.send_signal(signal.SIGTERM)
    wait_for(process, "seen")
    process.send_signal(signal.SIGTERM)
    code, errors = end(process)
    assert code == 75 and "a second SIGTERM" in errors


# --- two processes agree on the step

LOOP = """
import time
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from blue.runtime import preemption
from blue.workdir.checkpoints import Checkpoints
from blue.errors import Preempted

mesh = Mesh(np.array(jax.devices()), ("fsdp",))
sharding = NamedSharding(mesh, P("fsdp"))
state = jax.make_array_from_callback((8,), sharding, lambda i: np.zeros(8)[i])
add = jax.jit(lambda x: x + x.sum() + 1, out_shardings=sharding)
checkpoints = Checkpoints(sys.argv[2], keep=2, milestone_every=0)
with preemption.listening(60.0):
    try:
        for done in range(1, 10_000):
            state = add(state) % 1000
            state.block_until_ready()
            if done == 3:
                print("running", flush=True)
            if preemption.requested():
                checkpoints.save(done, {"x": state}, {})
                raise Preempted(f"step {done} is saved")
            time.sleep(0.01 * (1 + int(sys.argv[1])))  # one is slower
    except Preempted as error:
        print(error, flush=True)
        sys.exit(75)
"""


def test_a_signal_to_one_of_two_stops_both_at_the_same_step(tmp_path):
    two = start_two(LOOP, tmp_path)
    for process in two:
        wait_for(process, "running")
    two[1].send_signal(signal.SIGTERM)
    told = [process.communicate(timeout=120) for process in two]
    assert [process.returncode for process in two] == [75, 75], told
    last = [output.splitlines()[-1] for output, _ in told]
    assert last[0] == last[1] and last[0].startswith("step ")
    checkpoints = Checkpoints(tmp_path, keep=2, milestone_every=0)
    assert last[0].split()[1] == str(checkpoints.latest_step())
    assert "SIGTERM: leaving after this step" not in told[0][1]
