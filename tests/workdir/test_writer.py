import io
import json
import logging
import stat
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from google.protobuf import text_format
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.plugins import projector
from tensorboard.util import tensor_util

from blue.runtime import progress
from blue.runtime.progress import slices_with_progress
from blue.text.markdown import summary_table
from blue.workdir.writer import Writer, last_lines, write_curves


def open_writer(workdir, *, stage="profiler", first_step=0, tensorboard=False):
    return Writer(
        workdir,
        stage=stage,
        first_step=first_step,
        num_steps=10,
        every=3,
        tensorboard=tensorboard,
        hparams={"lr": 1e-3, "rewards": {"choice": {"weight": 1.0}}, "stages": ("a",)},
    )


def read(path):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    lines = path.read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def events(directory):
    """What TensorBoard's server reads there: all is a tensor to it, by tag."""
    accumulator = plugin_event_accumulator.EventAccumulator(
        str(directory), size_guidance={"tensors": 0}
    )
    accumulator.Reload()
    return accumulator


def points(found, tag):
    return [
        (event.step, tensor_util.make_ndarray(event.tensor_proto))
        for event in found.Tensors(tag)
    ]


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


def test_tensorboard_reads_everything_and_shows_replayed_steps_once(tmp_path):
    writer = open_writer(tmp_path, tensorboard=True)
    for step in range(4):
        values = {"policy/kl": step, "policy/nan": np.nan, "eval/ndcg@10": 0.5}
        writer.scalars(step, values)
        writer.histogram(step, "reward/total", jnp.array([[0.0, jnp.nan], [1.0, 2.0]]))
        writer.text(step, "profiles", "**a** <b>")
    writer.close()
    writer = open_writer(tmp_path, tensorboard=True, first_step=2)
    writer.scalars(2, {"policy/kl": 20})
    writer.close()
    found = events(tmp_path / "tensorboard" / "profiler")
    assert points(found, "policy/kl") == [(0, 0), (1, 1), (2, 20)]
    assert {"policy/nan", "policy_nan"}.isdisjoint(found.Tags()["tensors"])
    assert points(found, "eval/ndcg_10") == [(0, 0.5), (1, 0.5)]
    (step, bins), (later, _) = points(found, "reward/total")
    assert (step, later) == (0, 1)
    assert bins[0, 0] == 0 and bins[-1, 1] == 2 and bins[:, 2].sum() == 3
    assert points(found, "profiles/text_summary") == [
        (0, b"**a** <b>"),
        (1, b"**a** <b>"),
    ]
    plugin = found.summary_metadata["profiles/text_summary"].plugin_data
    assert plugin.plugin_name == "text"
    metadata = found.summary_metadata["_hparams_/session_start_info"]
    assert b"rewards.choice.weight" in metadata.plugin_data.content


def test_tensorboard_has_a_step_before_its_checkpoint_is_saved(tmp_path):
    """A kill right after the save: the resumed run does not do that step again."""
    writer = open_writer(tmp_path, tensorboard=True)
    writer.scalars(0, {"policy/kl": 0.5})
    writer.text(0, "profiles", "a")
    writer.progress(0, {})  # the stages' last word before they save
    found = events(tmp_path / "tensorboard" / "profiler")
    writer.close()
    assert points(found, "policy/kl") == [(0, 0.5)]
    assert points(found, "profiles/text_summary") == [(0, b"a")]


def test_a_projector_torn_by_a_kill_is_written_again(tmp_path):
    torn = tmp_path / "tensorboard" / "profiler" / "00003" / "items"
    torn.mkdir(parents=True)
    (torn / "tensors.tsv").write_text("1.0")
    writer = open_writer(tmp_path, tensorboard=True)
    writer.projector(3, "items", np.eye(2), [("item", "a"), ("item", "b")])
    writer.close()
    assert len((torn / "tensors.tsv").read_text().splitlines()) == 2
    listed = torn.parents[1] / "projector_config.pbtxt"
    assert listed.read_text().count("embeddings {") == 1

    listed.write_text('embeddings {\ntensor_name: "items:00003"\ntens')  # torn, too
    writer = open_writer(tmp_path, tensorboard=True)
    writer.projector(4, "items", np.eye(2), [("item", "a"), ("item", "b")])
    writer.close()
    config = text_format.Parse(listed.read_text(), projector.ProjectorConfig())
    (entry,) = config.embeddings
    assert entry.tensor_path == "00004/items/tensors.tsv"
    assert (torn.parents[1] / entry.metadata_path).exists()


def test_projector_has_one_clean_row_a_point(tmp_path):
    names = ["a\tb", "c\r\nd", "", "e\u2028f\x00g", "\udc80"]
    labels = [("item\t", name) for name in names]
    for _ in range(2):  # a resumed run comes by a second time
        writer = open_writer(tmp_path, tensorboard=True)
        writer.projector(3, "items", np.eye(5, dtype=np.float16), labels)
        writer.close()
    root = tmp_path / "tensorboard" / "profiler"
    assert (root / "projector_config.pbtxt").read_text().count("embeddings {") == 1
    (metadata,) = root.rglob("metadata.tsv")
    clean = ["a b", "c d", "-", "e f g", "?"]
    rows = ["kind\tname", *(f"item\t{name}" for name in clean)]
    assert metadata.read_text().splitlines() == rows
    (tensors,) = root.rglob("tensors.tsv")
    assert len(tensors.read_text().splitlines()) == 5


def test_curves_over_something_else_replace_earlier_ones(tmp_path):
    for top in (0.5, 0.75):
        curves = {"cold_start/blue": {10: top, 0: 0.25}, "cold_start/base": {0: 0.0}}
        write_curves(tmp_path, "evaluate", curves)
    folder = tmp_path / "tensorboard" / "evaluate"
    found = events(folder)
    assert points(found, "cold_start/blue") == [(0, 0.25), (10, 0.75)]
    assert set(found.Tags()["tensors"]) == set(curves)
    assert len(list(folder.iterdir())) == 1


def test_due_is_every_and_the_last(tmp_path):
    writer = open_writer(tmp_path)
    assert [s for s in range(10) if writer.due(s)] == [0, 3, 6, 9]
    writer.close()


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


def test_summary_table():
    table = summary_table([("blue", 12, 0.25), ("all_history", 3, 1.0)], "abc")
    assert table.split("\n") == [
        "a             b       c",
        "-----------  --  ------",
        "blue         12  0.2500",
        "all_history   3  1.0000",
    ]
