import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from blue.training.alarm_watch import alarm_limits, watch_alarms
from blue.workdir.writer import Writer
from configs import base


def test_alarms_are_told_once_and_go_on_after_a_resume(tmp_path, caplog):
    c = base.get_config("tiny")
    c.alarms.patience = 3
    caplog.set_level("INFO", logger="blue")

    def lines_of(workdir, values, first=0):
        writer = Writer(
            workdir, stage="profiler", first_step=first, num_steps=99, every=1,
            tensorboard=True, hparams={},
        )  # fmt: skip
        alarms_at = watch_alarms(c, str(workdir), "profiler", writer)
        for step in range(first, len(values)):
            metrics = {"reward/frac_zero_std": values[step], "data/epoch": 0}
            writer.scalars(step, metrics | alarms_at(step, metrics))
        writer.close()
        text = (workdir / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    values = [0.5, 1.0, 1.0, 1.0, 1.0, 0.8, 0.1]
    whole = lines_of(tmp_path / "a", values)
    marks = [row["alarm/reward_collapse"] for row in whole]
    assert marks == [0, 0, 0, 1, 1, 1, 0]
    told = [r for r in caplog.records if "reward_collapse" in r.getMessage()]
    assert [r.levelname for r in told] == ["WARNING", "INFO"]
    begins, ends = [r.getMessage() for r in told]
    assert begins.startswith(
        "step 3: ALARM: reward_collapse: reward/frac_zero_std = 1 "
    )
    assert "above 0.9 for 3 lines" in begins and "lower lr" in begins
    assert ends.startswith("step 6: over: reward_collapse")
    events = EventAccumulator(str(tmp_path / "a/tensorboard/profiler")).Reload()
    assert "alarm/reward_collapse" in events.Tags()["scalars"]
    assert "alarm/reward_collapse/text_summary" in events.Tags()["tensors"]
    for stop, back in ((3, 2), (5, 5), (6, 4)):  # killed after a line, resumed earlier
        workdir = tmp_path / f"b{stop}"
        lines_of(workdir, values[:stop])
        assert lines_of(workdir, values, first=back) == whole


def test_limits_are_those_of_the_precision_and_of_the_batch():
    c = base.get_config("tiny")
    c.update(batch_size=6, group_size=5)
    c.dtype.compute = "float32"
    exact = alarm_limits(c)  # tests run on CPUs
    assert exact.invalid == pytest.approx(30 * c.alarms.invalid)
    assert exact.gap_max == c.alarms.gap_max
    c.dtype.compute = "bfloat16"
    assert alarm_limits(c).gap_max == c.alarms.coarse * exact.gap_max
