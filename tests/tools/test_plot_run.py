"""Figures of a run: what is read and averaged, by hand; then what is drawn."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tools import plot_run

ROOT = Path(__file__).parents[2]
LENGTHS = [0, 1, 3, 5]


def spread(mean):
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.02, "users": 9}


def write_run(folder, *, seed=0, steps=60, cold_start=True, result=True):
    """A folder as a run leaves it."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    rows = [{"stage": "encoder", "step": 0, "policy/loss": 5.0}]
    for step in range(steps):
        row = {"stage": "profiler", "step": step, "reward/total": rng.normal()}
        row |= {"reward/choice": None, "profile/target_leak": 0.0, "policy/kl": 0.1}
        if step % 20 == 19:
            row["eval/ndcg@10"] = 0.1 + 0.01 * seed
        rows.append(row)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)
    methods = ("random", "blue", "10h+blue")
    found = {
        "protocols": {"1+99": {"chance": {"ndcg@10": 0.045}}, "full": {}},
        "methods": {
            m: {p: {"ndcg@10": spread(0.2 + seed)} for p in ("1+99", "full")}
            for m in methods
        },
    }
    del found["methods"]["random"]["full"]
    if cold_start:
        found["cold_start"] = [
            {
                "events": k,
                "methods": {m: {"ndcg@10": spread(k / 10 + seed)} for m in methods},
            }
            for k in LENGTHS
        ]
        del found["cold_start"][0]["methods"]["10h+blue"]
    if result:
        (folder / "evaluation.json").write_text(json.dumps(found))
    return folder


def test_curves_are_of_their_stage_and_skip_what_is_missing(tmp_path):
    rows = plot_run.read_rows(write_run(tmp_path / "a"))
    steps, values = plot_run.curve(rows, "eval/ndcg@10")
    assert steps.tolist() == [20, 40, 60] and values.tolist() == [0.1] * 3
    assert [len(axis) for axis in plot_run.curve(rows, "reward/choice")] == [0, 0]
    steps, values = plot_run.curve(rows, "encoder:policy/loss")
    assert (steps.tolist(), values.tolist()) == ([1], [5.0])


@pytest.mark.parametrize("folder, first", [("xwines", 1), ("quickstart", 1)])
def test_recorded_curves_are_read(folder, first):
    rows = plot_run.read_rows(ROOT / "experiments" / folder)
    steps, values = plot_run.curve(rows, "reward/total")
    assert steps[0] == first and len(steps) > 5 and np.isfinite(values).all()
    found = plot_run.read_result(ROOT / "experiments" / folder)
    assert plot_run.chance([found]) == pytest.approx(0.0454, abs=1e-4)


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(SystemExit, match="neither metrics.jsonl nor curves.csv"):
        plot_run.read_rows(tmp_path)
    assert plot_run.read_result(tmp_path) is None
    assert plot_run.cold_start({}) == plot_run.cold_start({"cold_start": None}) == {}


def test_running_mean_and_its_interval_by_hand():
    mean, half = plot_run.running_mean(np.array([1.0, 2.0, 6.0, 2.0]), 3)
    np.testing.assert_allclose(mean, [1.5, 3.0, 10 / 3, 4.0])
    sds = [np.sqrt(0.5), np.sqrt(7.0), np.sqrt(16 / 3), np.sqrt(8.0)]
    errors = np.array(sds) / np.sqrt([2, 3, 3, 2])
    np.testing.assert_allclose(half, 1.96 * errors)
    mean, half = plot_run.running_mean(np.array([3.0, 5.0]), 1)
    assert mean.tolist() == [3.0, 5.0] and half.tolist() == [0.0, 0.0]


def test_several_runs_are_their_mean_and_range_on_shared_steps():
    a = (np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 4.0]))
    b = (np.array([2.0, 3.0, 4.0]), np.array([4.0, 4.0, 9.0]))
    steps, mean, low, high = plot_run.seeds([a, b], 1)
    assert steps.tolist() == [2, 3] and mean.tolist() == [3, 4]
    assert low.tolist() == [2, 4] and high.tolist() == [4, 4]


def test_a_point_of_the_cold_start_is_an_interval_or_a_range():
    runs = [spread(0.1), spread(0.3)]
    assert plot_run.spread(runs[:1]) == pytest.approx((0.1, 0.09, 0.12))
    assert plot_run.spread(runs) == pytest.approx((0.2, 0.1, 0.3))


def test_every_profile_statistic_has_a_curve():
    from blue.evaluation import panel

    drawn = {key for _, _, keys in plot_run.PROFILES for key in keys}
    assert drawn == {f"profile/{key}" for key in panel.LABELS if key != "empty"}


# --- with matplotlib


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def test_one_run_is_drawn_with_bands_chance_and_units(tmp_path, pyplot):
    found = plot_run.figures(pyplot, [write_run(tmp_path / "a")])
    assert set(found) == {*plot_run.FIGURES, "evaluation", "cold_start"}
    axes = {axis.get_title(): axis for axis in found["training"].axes}
    assert set(axes) == {"stage encoder", "total reward", "validation users"}
    assert all(a.get_xlabel() == "step" and a.get_ylabel() for a in axes.values())
    assert axes["total reward"].collections  # the band
    labels = axes["validation users"].get_legend_handles_labels()[1]
    assert labels == ["history + profile", "chance"]
    (leaks,) = found["profiles"].axes
    assert leaks.get_title() == "leaks (must be 0)"

    protocols = found["evaluation"].axes
    assert [axis.get_title() for axis in protocols] == ["1+99", "full"]
    assert [len(axis.containers) for axis in protocols] == [3, 2]
    (cold,) = found["cold_start"].axes
    labels = cold.get_legend_handles_labels()[1]
    assert labels == ["random", "blue", "10h+blue", "chance"]
    lengths = [line.get_xdata().tolist() for line in cold.get_lines()[:3]]
    assert lengths == [LENGTHS, LENGTHS, LENGTHS[1:]]


def test_several_runs_share_the_figures(tmp_path, pyplot):
    runs = [write_run(tmp_path / str(seed), seed=seed) for seed in range(3)]
    found = plot_run.figures(pyplot, runs)
    (axis,) = [a for a in found["training"].axes if "validation" in a.get_title()]
    line = axis.get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), 0.11)
    (band,) = axis.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((0.1, 0.12))
    assert len(found["evaluation"].axes[0].containers) == 9


def test_what_is_missing_is_not_drawn(tmp_path, pyplot):
    without = write_run(tmp_path / "a", cold_start=False)
    assert "cold_start" not in plot_run.figures(pyplot, [without])
    bare = write_run(tmp_path / "b", result=False, steps=3)
    assert set(plot_run.figures(pyplot, [bare])) == set(plot_run.FIGURES)


def test_the_command_writes_the_same_bytes_twice(tmp_path, pyplot, capsys):
    run = write_run(tmp_path / "a")
    for out in ("x", "y"):
        plot_run.main([str(run)], str(tmp_path / out))
    assert len(capsys.readouterr().out.split()) == 10
    files = sorted(path.name for path in (tmp_path / "x").iterdir())
    assert len(files) == 5
    for name in files:
        drawn = (tmp_path / "x" / name).read_bytes()
        assert drawn == (tmp_path / "y" / name).read_bytes()


@pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is not None, reason="matplotlib is there"
)
def test_without_matplotlib_one_line_says_what_to_install(tmp_path):
    with pytest.raises(SystemExit, match="plots"):
        plot_run.main([str(tmp_path)], str(tmp_path))
