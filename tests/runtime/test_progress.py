"""Progress on a terminal and without one."""

import io
import logging
from types import SimpleNamespace

import jax.numpy as jnp

from blue.runtime import progress
from blue.runtime.progress import slices_with_progress
from tests.helpers.writers import open_writer


def test_progress_without_a_terminal_is_a_few_log_lines(tmp_path, caplog, monkeypatch):
    clock = iter([100.0, 104.0, 108.0, 112.0, 116.0])
    fake_time = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr(progress, "time", fake_time)
    writer = open_writer(tmp_path)
    with caplog.at_level(logging.INFO, "blue"):
        for step in (5, 6, 7, 8, 9):
            writer.progress(step, {"reward/total": jnp.float32(0.25)})
    writer.close()
    assert caplog.messages == [
        "profiler 6/10  reward/total 0.25",
        "profiler 9/10  0.25 steps/s  0:00:04 left  reward/total 0.25",
        "profiler 10/10  0.25 steps/s  0:00:00 left  reward/total 0.25",
    ]


def test_slices_are_told_only_when_they_take_long(caplog, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    caplog.set_level(logging.INFO, logger="blue")
    clock = iter(range(0, 1000, 3))  # a look at the clock every three seconds
    monkeypatch.setattr(
        progress, "time", SimpleNamespace(monotonic=lambda: float(next(clock)))
    )
    parts = list(slices_with_progress(5, 2, name="items", unit="item"))
    assert parts == [slice(0, 2), slice(2, 4), slice(4, 6)] and not caplog.messages
    assert len(list(slices_with_progress(50, 5, name="items", unit="item"))) == 10
    assert caplog.messages[0].startswith("items 20/50  1.67 items/s  0:00:18 left")
    assert caplog.messages[-1].startswith("items 50/50") and len(caplog.messages) < 5


def test_progress_on_a_narrow_terminal_stays_on_one_line(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    writer = open_writer(tmp_path)
    for step in range(3):
        writer.progress(step, {"reward/total": 0.1, "policy/kl": 0.2, "time/step_s": 3})
    writer.close()
    drawn = terminal.getvalue()
    assert drawn.endswith("\n") and drawn.count("\n") == 1
    assert {len(line) for line in drawn.strip("\r\n").split("\r")} == {39}
