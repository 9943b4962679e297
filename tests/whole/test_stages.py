"""Whole stages on a tiny world: what they leave, resume to the bit, compile counts."""

import functools
import itertools
import re
import shutil
import signal
import stat
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from blue import errors
from blue.data.batches import batch_indices
from blue.errors import Preempted
from blue.models.params import abstract_params
from blue.rewards import inputs
from blue.runtime import preemption
from blue.runtime.sharding import AXES, make_mesh, put, to_host
from blue.sources.data import load_examples, load_log
from blue.sources.open_run import Run
from blue.sources.profiler import load_profiler
from blue.sources.role import stage_checkpoints
from blue.stages import train_encoder, train_profiler, warm_start
from blue.training import replay, session, watch
from blue.workdir import checkpoints, record, writer
from tests.helpers.small_stages import (
    STEPS,
    four_step_config,
    lines,
    one_layer,  # noqa: F401
    same_updates,  # noqa: F401
)

pytestmark = pytest.mark.usefixtures("one_layer", "same_updates")
RUN = {"encoder": train_encoder, "warm_start": warm_start, "profiler": train_profiler}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, one_layer, same_updates):  # noqa: F811
    """A workdir in which three stages ran without a break.

    Beside it, `*-STAGE` is a copy from the third step of each, after the step's line
    and before its save. That is what a kill would have left.
    """
    workdir = tmp_path_factory.mktemp("whole")
    progress = writer.Writer.progress

    def copy(self, step, values):
        progress(self, step, values)
        if step == 2:
            shutil.copytree(workdir, f"{workdir}-{stage}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer.Writer, "progress", copy)
        for stage, module in RUN.items():  # noqa: B007  (`copy` reads it)
            module.run(four_step_config(), str(workdir))
    return workdir


def final_state(workdir, stage):
    saved = sorted((workdir / "checkpoints" / stage).glob("[0-9]*"))[-1]
    state = ocp.load_checkpointables(saved, {"state": None})["state"]
    return saved.name, jax.tree.leaves(state)


@pytest.mark.parametrize("stage", RUN)
def test_resume_is_bitwise(whole, stage):
    """Killed in the third step, after its line and before its save."""
    killed = Path(f"{whole}-{stage}")
    assert [row["step"] for row in lines(killed, stage)] == [0, 1, 2]
    assert stage_checkpoints(four_step_config(), str(killed), stage).latest_step() == 2
    RUN[stage].run(four_step_config(), str(killed))

    ours, theirs = lines(killed, stage), lines(whole, stage)
    assert [row["step"] for row in ours] == list(range(STEPS))
    keep = lambda row: {
        k: v for k, v in row.items() if not k.startswith(("time/", "speed/"))
    }
    assert [keep(row) for row in ours] == [keep(row) for row in theirs]
    (step_a, a), (step_b, b) = final_state(killed, stage), final_state(whole, stage)
    assert step_a == step_b == str(STEPS) and len(a) == len(b) > 10
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    samples = "samples.jsonl"
    assert lines(killed, stage, samples) == lines(whole, stage, samples)
    assert bool(lines(whole, stage, samples)) == (stage == "profiler")


@pytest.mark.slow
def test_a_warm_start_of_two_tasks_resumes_to_the_bit(tmp_path, monkeypatch):
    """Tasks take turns; the resumed stage takes the turn that is due."""
    c = four_step_config()
    c.stages, c.warm_start.tasks = ("warm_start",), ("profile", "choice")
    warm_start.run(c, str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        progress = writer.Writer.progress

        def die(self, step, values):
            progress(self, step, values)
            if step == 2:
                raise KeyboardInterrupt

        patch.setattr(writer.Writer, "progress", die)
        with pytest.raises(KeyboardInterrupt):
            warm_start.run(c, str(tmp_path / "killed"))
    assert stage_checkpoints(c, f"{tmp_path}/killed", "warm_start").latest_step() == 2
    warm_start.run(c, str(tmp_path / "killed"))
    a = final_state(tmp_path / "whole", "warm_start")
    b = final_state(tmp_path / "killed", "warm_start")
    assert a[0] == b[0] == str(STEPS)
    for x, y in zip(a[1], b[1], strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.slow
def test_stopped_by_sigterm_and_started_again_is_the_whole_run(
    whole, tmp_path, monkeypatch
):
    """The signal comes in the first step, whose checkpoint was not due."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    progress = writer.Writer.progress

    def with_signal(self, step, values):
        progress(self, step, values)
        signal.raise_signal(signal.SIGTERM)

    for stage in ("warm_start", "profiler"):
        shutil.rmtree(tmp_path / "checkpoints" / stage)
        with monkeypatch.context() as patch, preemption.listening(600.0):
            patch.setattr(writer.Writer, "progress", with_signal)
            with pytest.raises(Preempted, match="step 1 is saved"):
                RUN[stage].run(four_step_config(), str(tmp_path))
        checkpoints = stage_checkpoints(four_step_config(), str(tmp_path), stage)
        assert checkpoints.latest_step() == 1 and not checkpoints.finished()
        RUN[stage].run(four_step_config(), str(tmp_path))
        a, b = final_state(whole, stage), final_state(tmp_path, stage)
        assert a[0] == b[0] == str(STEPS)
        for x, y in zip(a[1], b[1], strict=True):
            np.testing.assert_array_equal(x, y)
        assert [row["step"] for row in lines(tmp_path, stage)] == [*range(STEPS)]


def fingerprint_of(workdir):
    """What the newest checkpoint of the profiler says of all its bits."""
    path = workdir / "checkpoints" / "profiler" / str(STEPS)
    return checkpoints._read_record(epath.Path(path))["fingerprint"]


@pytest.mark.slow
def test_observers_do_not_disturb(whole, tmp_path):
    """Not logging, samples, validation, TensorBoard, nor traces of steps."""
    for stage in ("encoder", "warm_start"):
        shutil.copytree(whole / "checkpoints" / stage, tmp_path / "checkpoints" / stage)
    c = four_step_config()
    c.log.every, c.log.tensorboard, c.log.sample_users = 3, False, 0
    c.eval_every, c.checkpoint_every, c.log.samples_every = 0, 3, 3
    c.profile_steps = (1, 2)
    train_profiler.run(c, str(tmp_path))
    assert any((tmp_path / "tensorboard" / "profiler").rglob("*.xplane.pb"))
    assert fingerprint_of(tmp_path) == fingerprint_of(whole)
    ours, theirs = lines(tmp_path, "profiler"), lines(whole, "profiler")
    assert [row["step"] for row in ours] == [0, STEPS - 1]
    for a, b in zip(ours, (theirs[0], theirs[-1]), strict=True):
        told = {k for k in a if not k.startswith(("time/", "speed/", "alarm/"))}
        assert len(told) > 30 and {k: a[k] for k in told} == {k: b[k] for k in told}


@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 2, 2), (1, 1, 1)],
        pytest.param([(1, 8, 1), (1, 2, 2)], marks=pytest.mark.slow),
    ],
)
def test_another_mesh_goes_on_from_the_same_bits(whole, shapes):
    """Eight devices wrote it; 2 x 2 x 2, four and one read it."""
    c = four_step_config()
    log = load_log(c, str(whole))
    data = load_examples(c, log, str(whole)).fingerprint
    _, optimizer = session.optimizer_of(c, c, b2=c.adam_b2)
    saved = stage_checkpoints(c, str(whole), "profiler")
    model = load_profiler(Run(c, str(whole), make_mesh(1, -1, 1), log), "base")
    assert model is not None
    for shape in shapes:
        devices = jax.devices()[: int(np.prod(shape))]
        mesh = Mesh(np.asarray(devices).reshape(shape), AXES)
        wanted = abstract_params(model.cfg, mesh, c.dtype.params)
        there = jax.tree.map(
            lambda s, x: jax.device_put(to_host(x), s.sharding), wanted, model.params
        )
        again = model._replace(params=there)
        note = session.checkpoint_note(c, again, data=data, stage="profiler")
        state, _, step = session.start(saved, optimizer, again, mesh, note, "auto")
        assert step == STEPS and len(jax.tree.leaves(state)[0].devices()) == mesh.size
        assert checkpoints.fingerprint(state) == fingerprint_of(whole)


def test_metrics_have_the_promised_keys(whole):
    rows = lines(whole, "profiler")
    promised = """
        reward/total reward/total_std reward/embedding reward/embedding_std
        reward/choice reward/choice_std reward/frac_zero_std reward/invalid
        reward/corr_embedding_choice policy/loss policy/kl policy/entropy
        policy/clip_fraction policy/sampler_gap_mean policy/sampler_gap_max
        rollout/length_mean rollout/length_max rollout/truncated rollout/empty
        optim/lr optim/grad_norm optim/skipped time/step_s time/rollout_s
        time/reward_s time/update_s time/checkpoint_s time/data_s speed/tokens_per_s
        time/text_s time/embed_s speed/encoder_padding
        speed/mfu speed/hbm_gb speed/compiles data/rows_bad data/epoch data/prompts
        profile/mentions profile/target_leak profile/history_leak profile/copied
        profile/boilerplate profile/repeated_4grams profile/distinct_words
        profile/speculation_rate profile/compression profile/words
    """.split()
    assert set(promised) <= set().union(*rows)
    assert {"eval/ndcg@10", "eval/recall@10", "eval/mrr"} <= set(rows[-1])
    assert max(row["policy/sampler_gap_max"] for row in rows) < 1e-4
    assert rows[0]["policy/kl"] < 1e-6 < rows[-1]["policy/kl"]  # it moved


def test_nothing_compiles_after_the_first_step(whole):
    for stage in RUN:
        counts = {row["speed/compiles"] for row in lines(whole, stage)}
        assert len(counts) == 1, (stage, counts)


def test_samples_show_the_same_users_and_no_identifier(whole):
    rows = lines(whole, "profiler", "samples.jsonl")
    by_step = {}
    for row in rows:
        by_step.setdefault(row["step"], []).append(row["user"])
    assert len(by_step) == STEPS
    assert len({tuple(users) for users in by_step.values()}) == 1
    assert all(len(user) == 12 for user in rows[0]["user"].split())
    keys = {"history", "next_item", "profile", "rewards", "advantage"}
    assert keys <= set(rows[0])
    mode = stat.S_IMODE((whole / "samples.jsonl").stat().st_mode)
    assert mode == 0o600


def test_finished_stages_are_skipped_and_leave_a_result(whole):
    before = (whole / "metrics.jsonl").read_text()
    for stage, module in RUN.items():
        module.run(four_step_config(), str(whole))
        checkpoints = stage_checkpoints(four_step_config(), str(whole), stage)
        assert checkpoints.finished() and checkpoints.best()["step"] <= STEPS
    assert (whole / "metrics.jsonl").read_text() == before


def test_tensorboard_has_scalars_text_histograms_and_points(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = whole / "tensorboard" / "profiler"
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    tags = events.Tags()
    assert "reward/total" in tags["scalars"]
    assert any(tag.startswith("samples/0") for tag in tags["tensors"])
    for tag in ("advantage", "reward/distribution", "rollout/length"):
        kind = events.SummaryMetadata(tag).plugin_data.plugin_name
        assert kind == "histograms"


def test_the_projector_shows_items_and_hashed_users(whole):
    """Through TensorBoard's own plugin, as a browser would ask for it."""
    from tensorboard.backend.event_processing.data_provider import (
        MultiplexerDataProvider,
    )
    from tensorboard.backend.event_processing.plugin_event_multiplexer import (
        EventMultiplexer,
    )
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
    from werkzeug.test import Client

    logdir = str(whole / "tensorboard")
    events = EventMultiplexer().AddRunsFromDirectory(logdir)
    events.Reload()
    provider = MultiplexerDataProvider(events, logdir)
    plugin = ProjectorPlugin(TBContext(logdir=logdir, data_provider=provider))
    apps = plugin.get_plugin_apps()
    ask = lambda route, **query: Client(apps[route]).get("/", query_string=query)
    plugin._determine_is_active()  # reads the files; otherwise in a thread
    assert "profiler" in ask("/runs").json
    (points,) = ask("/info", run="profiler").json["embeddings"]
    found = {"run": "profiler", "name": points["tensorName"]}
    vectors = np.frombuffer(ask("/tensor", **found).data, np.float32)
    header, *rows = ask("/metadata", **found).text.splitlines()
    assert header == "kind\tname"
    kinds, names = zip(*(row.split("\t") for row in rows), strict=True)
    assert vectors.size == len(rows) * points["tensorShape"][1]
    log = load_log(four_step_config(), str(whole))
    assert list(names[: kinds.count("item")]) == log.titles
    users = names[kinds.index("user") :]
    assert kinds.count("user") == len(users) > 1
    assert all(re.match(r"[0-9a-f]{12}: \w", name) for name in users)
    assert not any(user in name for name in names for user in log.user_ids)


def poisoned(monkeypatch, module, name, steps, poison):
    """`module.name`, called once a step, with what it returns poisoned at `steps`."""
    real, step = getattr(module, name), itertools.count()

    @functools.wraps(real)  # an input is found by its signature
    def call(*args, **kwargs):
        out = real(*args, **kwargs)
        return poison(out) if next(step) in steps else out

    monkeypatch.setattr(module, name, call)


def replay_of(workdir, name):
    found = replay.replay(str(workdir), str(workdir / "bad_batches" / name))
    return found, replay.describe(found)


@pytest.mark.slow
def test_bad_numbers_are_skipped_then_stop_the_run_and_can_be_replayed(
    tmp_path, monkeypatch, caplog
):
    """One infinite advantage at step 1, then a judge that fails on every profile."""
    c = four_step_config()
    c.stages, c.num_steps, c.max_nonfinite = ("profiler",), 6, 2
    c.checkpoint_every, c.eval_every, c.log.samples_every = 1, 0, 100
    c.log.tensorboard = False
    record.save(c, str(tmp_path))
    split = load_examples(c, load_log(c, ""), str(tmp_path)).train

    def one(seen):
        bad = to_host(seen.device_advantages).copy()
        bad[2, 1] = np.inf
        device = put(bad, seen.device_advantages.sharding)
        return seen._replace(device_advantages=device)

    with monkeypatch.context() as patch:
        poisoned(patch, train_profiler, "score", {2}, one)  # step 0 shows samples, too
        nan = lambda scores: np.full_like(scores, np.nan)
        poisoned(patch, inputs, "choice_scores", {4, 5, 6}, nan)
        with pytest.raises(errors.NonFinite, match="step 4: 2 updates in a row"):
            train_profiler.run(c, str(tmp_path))

    rows = lines(tmp_path, "profiler")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row["optim/skipped"] for row in rows] == [0, 1, 1, 2]
    assert [row["policy/loss"] is None for row in rows] == [False, True, False, True]
    everyone = c.batch_size * c.group_size
    assert [row["reward/invalid"] for row in rows] == [0, 0, 0, everyone]
    assert rows[3]["reward/total"] is None and rows[3]["reward/embedding"] < 0
    folder = tmp_path / "bad_batches"
    kept = {f"profiler-{step}.npz" for step in (1, 3, 4)}
    assert {path.name for path in folder.iterdir()} == kept
    assert stat.S_IMODE((folder / "profiler-1.npz").stat().st_mode) == 0o600
    (warned, *_) = [m for m in caplog.messages if "update skipped" in m]
    assert warned.startswith("step 1: not finite (in what came in: rows 2)")
    assert "profiler-1.npz" in warned

    # the skipped updates changed no bit, and what was saved is good
    by_step = {}
    for path in (tmp_path / "checkpoints/profiler").glob("[0-9]*"):
        state = ocp.load_checkpointables(path, {"state": None})["state"]
        by_step[int(path.name)] = jax.tree.leaves(state["params"])
    assert sorted(by_step) == [2, 3, 4]  # after steps 1, 2, 3: the newest three
    leaves = lambda step: [np.asarray(x) for x in by_step[step]]
    assert all(np.isfinite(x).all() for x in leaves(4))
    assert all((x == y).all() for x, y in zip(leaves(3), leaves(4), strict=True))
    assert any((x != y).any() for x, y in zip(leaves(2), leaves(3), strict=True))

    found, told = replay_of(tmp_path, "profiler-3.npz")
    assert found["first"] == ("reward/choice", 0, (0,)) and found["skipped"]
    assert np.isnan(found["loss"]) and found["left_out"] == everyone
    assert told[0] == "profiler, step 3, with the parameters of step 3"
    assert told[-2] == f"{everyone} profiles taught nothing: no valid reward"
    shutil.copytree(
        tmp_path / "checkpoints/profiler/2", tmp_path / "checkpoints/profiler/1"
    )
    found, told = replay_of(tmp_path, "profiler-1.npz")
    indices = batch_indices(len(split.user), batch_size=8, seed=c.seed, step=1)
    assert found["first"] == ("advantage", 2, (1,))
    user = split.user[indices[2]]
    assert (
        told[-1]
        == f"first not finite: advantage, row 2, user {user} of the log, at [1]"
    )
    assert not np.isfinite(found["grad_norm"]) and found["skipped"]
    assert {"embed", "layers/q"} <= found["grad_norms"].keys()
    shutil.rmtree(tmp_path / "checkpoints/profiler/1")

    # the judge is well again: on from the newest checkpoint to the end
    train_profiler.run(c, str(tmp_path))
    rows = lines(tmp_path, "profiler")
    assert [row["step"] for row in rows] == list(range(6))
    assert [row["optim/skipped"] for row in rows] == [0, 1, 1, 2, 2, 2]
    assert (tmp_path / "export/profiler/model.safetensors").exists()


@pytest.mark.parametrize("stage", ["encoder", "warm_start"])
@pytest.mark.slow
def test_an_update_out_of_bounds_stops_a_supervised_stage(stage, tmp_path):
    """lr beyond float32: loss and gradient are finite, the parameters would not be."""
    c = four_step_config()
    c.stages, c.max_nonfinite, c.checkpoint_every = (stage,), 2, 1
    section = {"encoder": c.train_encoder, "warm_start": c.warm_start}[stage]
    section.lr, section.lr_warmup_steps, section.lr_schedule = 1e39, 0, "constant"
    c.log.tensorboard = False
    record.save(c, str(tmp_path))
    with pytest.raises(errors.NonFinite, match="step 1: 2 updates in a row"):
        RUN[stage].run(c, str(tmp_path))
    checkpoints = stage_checkpoints(c, str(tmp_path), stage)
    assert not checkpoints.finished() and checkpoints.best() is None
    assert not (tmp_path / "export").exists()
    _, leaves = final_state(tmp_path, stage)
    assert all(np.isfinite(np.asarray(x)).all() for x in leaves)
    found, told = replay_of(tmp_path, f"{stage}-0.npz")
    assert found["first"] is None and found["skipped"]
    assert np.isfinite(found["loss"]) and found["grad_norm"] > 0
    assert told[-1].startswith("the optimizer's step would break params/embed")


def test_the_stage_ends_with_a_table(whole):
    table = watch.summary(str(whole), "profiler")
    assert "reward/embedding" in table and "last tenth" in table


def test_a_stage_left_out_of_the_list_is_told(whole, caplog):
    c = four_step_config()
    c.stages = ("profiler",)
    log = load_log(c, str(whole))
    model = load_profiler(
        Run(c, str(whole), make_mesh(1, -1, 1), log), "base", stage="profiler"
    )
    assert model is not None and model.name.endswith("random weights")
    (line,) = [m for m in caplog.messages if "random weights" in m]
    assert "stages=profiler leaves out warm_start" in line
