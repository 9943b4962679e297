import gzip
import json
import logging

import jax
import jax.numpy as jnp
import pytest

from blue.runtime import tracing, watchdog


def loop(folder, window, numbers=range(5)):
    """A loop of two phases; what it computes."""
    double, values = jax.jit(lambda x: 2 * x), []
    for step in tracing.steps(numbers, window, folder):
        watchdog.sign_of_life("rollout", step=step)
        x = double(jnp.float32(step))
        watchdog.sign_of_life("update")
        values.append(float(double(x)))
    return values


def traces(folder):
    """Events of each trace that lies there."""
    files = sorted(folder.glob("plugins/profile/*/perfetto_trace.json.gz"))
    return [json.loads(gzip.decompress(f.read_bytes()))["traceEvents"] for f in files]


def test_the_chosen_steps_and_their_phases_have_names(tmp_path):
    assert loop(tmp_path, (1, 2)) == loop(tmp_path, ()) == [0.0, 4.0, 8.0, 12.0, 16.0]
    (events,) = traces(tmp_path)
    assert any((tmp_path / "plugins/profile").glob("*/*.xplane.pb"))
    named = lambda name: [e for e in events if e.get("name") == name]
    numbers = [int(event["args"]["step_num"]) for event in named("step")]
    assert numbers == [1, 2]
    for phase in ("rollout", "update"):
        found = sorted(event["ts"] for event in named(phase))
        for start, step in zip(found, named("step"), strict=True):
            assert step["ts"] <= start <= step["ts"] + step["dur"]
    assert not watchdog.listeners


@pytest.mark.parametrize("numbers", [range(2, 4), range(0)])
def test_a_window_that_began_before_or_is_never_reached(tmp_path, numbers):
    loop(tmp_path, (1, 9), numbers)
    assert len(traces(tmp_path)) == bool(numbers)


def test_a_loop_that_is_left_leaves_no_trace_open(tmp_path):
    for step in tracing.steps(range(5), (1, 3), tmp_path):
        if step == 2:
            break
    assert len(traces(tmp_path)) == 1 and not watchdog.listeners
    loop(tmp_path / "again", (0, 0))  # one could not begin while another is open
    assert len(traces(tmp_path / "again")) == 1


def test_a_trace_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING, "blue"):
        assert loop(tmp_path / "file", (1, 2))[-1] == 16.0
    (record,) = caplog.records
    assert "profile_steps: no trace" in record.message
