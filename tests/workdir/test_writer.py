import json
import stat

import jax.numpy as jnp
import numpy as np
import pytest

from blue.workdir.writer import last_lines
from tests.helpers.writers import open_writer


def read(path):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    lines = path.read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_metrics_are_strict_json_and_readable_before_the_run_ends(tmp_path):
    writer = open_writer(tmp_path)
    values = {"a/x": jnp.bfloat16(0.5), "a/nan": np.float32("nan"), "a/inf": -np.inf}
    writer.scalars(0, values | {"a/n": np.int64(3)})
    assert read(tmp_path / "metrics.jsonl") == [
        {
            "step": 0,
            "stage": "profiler",
            "a/x": 0.5,
            "a/nan": None,
            "a/inf": None,
            "a/n": 3,
        }
    ]
    writer.close()


def test_a_resumed_run_tells_each_step_once(tmp_path):
    writer = open_writer(tmp_path, stage="encoder")
    writer.scalars(5, {"a": 1})
    writer.close()
    writer = open_writer(tmp_path)
    for step in range(4):
        writer.scalars(step, {"a": step})
        writer.samples(step, [{"profile": "p"}])
    writer.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "stage": "prof\xc3')  # killed while writing

    writer = open_writer(tmp_path, first_step=2)
    writer.scalars(2, {"a": 20})
    writer.close()
    found = [(r["stage"], r["step"], r["a"]) for r in read(tmp_path / "metrics.jsonl")]
    assert found == [
        ("encoder", 5, 1),
        ("profiler", 0, 0),
        ("profiler", 1, 1),
        ("profiler", 2, 20),
    ]
    assert [r["step"] for r in read(tmp_path / "samples.jsonl")] == [0, 1]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"metrics.jsonl", "samples.jsonl"}


def test_the_last_lines_of_a_stage_come_back(tmp_path):
    assert last_lines(tmp_path, "profiler", 3) == []
    for stage in ("warm_start", "profiler"):
        writer = open_writer(tmp_path, stage=stage)
        for step in range(5):
            writer.scalars(step, {"loss": 0.1 * step, "kl": float("nan")})
        writer.close()
    lines = last_lines(tmp_path, "warm_start", 2)
    assert [line["loss"] for line in lines] == [0.1 * 3, 0.1 * 4]  # to the bit
    assert [line["step"] for line in lines] == [3, 4] and lines[0]["kl"] is None
    assert len(last_lines(tmp_path, "profiler", 50)) == 5


def test_samples_are_private_and_one_line_each(tmp_path):
    profile = "two\nlines\u2028and a lone \udc80"
    for first_step in (0, 1):  # also after the file was rewritten
        writer = open_writer(tmp_path, first_step=first_step)
        rewards = {"choice": np.float32("inf"), "embedding": 1}
        writer.samples(
            first_step,
            [{"profile": profile, "rewards": rewards, "ids": np.arange(2), "ok": True}],
        )
        writer.close()
        mode = stat.S_IMODE((tmp_path / "samples.jsonl").stat().st_mode)
        assert mode == 0o600
    rows = read(tmp_path / "samples.jsonl")
    assert [row["step"] for row in rows] == [0, 1]
    assert rows[0]["profile"] == profile
    assert rows[0]["rewards"] == {"choice": None, "embedding": 1}
    assert rows[0]["ids"] == [0, 1] and rows[0]["ok"] is True


def test_due_is_every_and_the_last(tmp_path):
    writer = open_writer(tmp_path)
    assert [s for s in range(10) if writer.due(s)] == [0, 3, 6, 9]
    writer.close()


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    writer = open_writer(tmp_path, tensorboard=True)
    writer.scalars(0, {"a": 1})
    writer.samples(0, [{}])
    writer.progress(0, {})
    writer.projector(0, "x", np.eye(2), [("user", "a"), ("item", "b")])
    writer.close()
    assert not list(tmp_path.iterdir())


def test_reserved_keys_are_refused(tmp_path):
    with pytest.raises(AssertionError):
        open_writer(tmp_path).scalars(0, {"step": 1})
