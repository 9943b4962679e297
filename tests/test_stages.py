"""Whole stages on a tiny world: what they leave, resume to the bit, compile counts."""

import json
import re
import shutil
import stat

import jax
import numpy as np
import pytest
from etils import epath
from jax.sharding import Mesh

from blue import (
    checkpoints,
    programs,
    session,
    sources,
    train_encoder,
    train_profiler,
    warm_start,
    watch,
    writer,
)
from blue.sharding import AXES, make_mesh
from blue.sources import stage_checkpoints
from configs import quickstart

RUN = {"encoder": train_encoder, "warm_start": warm_start, "profiler": train_profiler}
STEPS = 4


def make_config():
    c = quickstart.get_config("tiny")
    c.num_steps = c.train_encoder.num_steps = c.warm_start.num_steps = STEPS
    c.warm_start.tasks = ("profile", "choice")
    c.checkpoint_every, c.eval_every = 2, 4
    c.lr_warmup_steps = 0
    c.train_encoder.lr, c.warm_start.lr_warmup_steps = 1e-3, 1
    return c


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A workdir in which three stages ran without a break."""
    workdir = tmp_path_factory.mktemp("whole")
    for module in RUN.values():
        module.run(make_config(), str(workdir))
    return workdir


def lines(workdir, stage, name="metrics.jsonl"):
    rows = [json.loads(line) for line in (workdir / name).read_text().splitlines()]
    return [row for row in rows if row["stage"] == stage]


def final_state(workdir, stage):
    saved = sorted((workdir / "checkpoints" / stage).glob("[0-9]*"))[-1]
    from orbax.checkpoint import v1 as ocp

    state = ocp.load_checkpointables(saved, {"state": None})["state"]
    return saved.name, jax.tree.leaves(state)


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


def test_resume_is_bitwise(whole, tmp_path, monkeypatch):
    """Killed in the third step of every stage, after its line and before its save."""
    progress = writer.Writer.progress

    def die(self, step, values):
        if step == 2:
            raise Killed
        progress(self, step, values)

    for stage, module in RUN.items():
        with monkeypatch.context() as patch:
            patch.setattr(writer.Writer, "progress", die)
            with pytest.raises(Killed):
                module.run(make_config(), str(tmp_path))
        assert [row["step"] for row in lines(tmp_path, stage)] == [0, 1, 2]
        module.run(make_config(), str(tmp_path))

        ours, theirs = lines(tmp_path, stage), lines(whole, stage)
        assert [row["step"] for row in ours] == list(range(STEPS))
        keep = lambda row: {
            k: v for k, v in row.items() if not k.startswith(("time/", "speed/"))
        }
        assert [keep(row) for row in ours] == [keep(row) for row in theirs]
        (step_a, a), (step_b, b) = (
            final_state(tmp_path, stage),
            final_state(whole, stage),
        )
        assert step_a == step_b == str(STEPS) and len(a) == len(b) > 10
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    samples = "samples.jsonl"
    assert lines(tmp_path, "profiler", samples) == lines(whole, "profiler", samples)


def fingerprint_of(workdir):
    """What the newest checkpoint of the profiler says of all its bits."""
    path = workdir / "checkpoints" / "profiler" / str(STEPS)
    return checkpoints._read_record(epath.Path(path))["fingerprint"]


def test_observers_do_not_disturb(whole, tmp_path):
    """Not logging, samples, validation, TensorBoard, nor the profiler of jax."""
    for stage in ("encoder", "warm_start"):
        shutil.copytree(whole / "checkpoints" / stage, tmp_path / "checkpoints" / stage)
    c = make_config()
    c.log.every, c.log.tensorboard, c.log.sample_users = 3, False, 0
    c.eval_every, c.checkpoint_every, c.log.samples_every = 0, 3, 3
    with jax.profiler.trace(tmp_path / "trace"):
        train_profiler.run(c, str(tmp_path))
    assert any((tmp_path / "trace").rglob("*.xplane.pb"))
    assert fingerprint_of(tmp_path) == fingerprint_of(whole)
    ours, theirs = lines(tmp_path, "profiler"), lines(whole, "profiler")
    assert [row["step"] for row in ours] == [0, STEPS - 1]
    for a, b in zip(ours, (theirs[0], theirs[-1]), strict=True):
        told = {k for k in a if not k.startswith(("time/", "speed/"))}
        assert len(told) > 30 and {k: a[k] for k in told} == {k: b[k] for k in told}


def test_another_mesh_goes_on_from_the_same_bits(whole):
    """Eight devices wrote it; 2 x 2 x 2, four and one read it."""
    c = make_config()
    log = sources.load_log(c, str(whole))
    _, optimizer = session.optimizer_of(c, c, b2=c.adam_b2)
    saved = stage_checkpoints(c, str(whole), "profiler")
    model = sources.load_profiler(c, log, str(whole), make_mesh(1, -1, 1), "base")
    assert model is not None
    for shape in ((1, 8, 1), (2, 2, 2), (1, 2, 2), (1, 1, 1)):
        devices = jax.devices()[: int(np.prod(shape))]
        mesh = Mesh(np.asarray(devices).reshape(shape), AXES)
        shapes = programs.abstract_params(model.cfg, mesh, c.dtype.params)
        state, step = session.start(saved, shapes, optimizer, model.params, mesh)
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
        module.run(make_config(), str(whole))
        checkpoints = stage_checkpoints(make_config(), str(whole), stage)
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
    assert "advantage" in tags["histograms"]


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
    log = sources.load_log(make_config(), str(whole))
    assert list(names[: kinds.count("item")]) == log.titles
    users = names[kinds.index("user") :]
    assert kinds.count("user") == len(users) > 1
    assert all(re.match(r"[0-9a-f]{12}: \w", name) for name in users)
    assert not any(user in name for name in names for user in log.user_ids)


def test_too_many_non_finite_updates_stop_the_run():
    info = {"skipped_in_row": 2.0, "policy/loss": 1.0}
    session.stop_if_not_finite(dict(info), 7, 3)
    with pytest.raises(session.NonFinite, match="step 7: 3 updates"):
        session.stop_if_not_finite(info | {"skipped_in_row": 3.0}, 7, 3)


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("batch_size", 12, "batch_size = 12 must be a positive multiple of 8"),
        ("microbatch_size", 3, "microbatch_size = 3 must be a positive multiple of 8"),
        ("group_size", 1, "group_size = 1 must be at least 2"),
        ("max_prompt_tokens", 500, "max_prompt_tokens = 500 is more than the largest"),
    ],
)
def test_mistakes_are_told_before_anything_runs(field, value, words, tmp_path):
    c = make_config()
    c[field] = value
    with pytest.raises(ValueError, match=words):
        train_profiler.run(c, str(tmp_path))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_stage_ends_with_a_table(whole):
    table = watch.summary(str(whole), "profiler")
    assert "reward/embedding" in table and "last tenth" in table


def test_a_stage_left_out_of_the_list_is_told(whole, caplog):
    c = make_config()
    c.stages = ("profiler",)
    log = sources.load_log(c, str(whole))
    model = sources.load_profiler(
        c, log, str(whole), make_mesh(1, -1, 1), "base", stage="profiler"
    )
    assert model is not None and model.name.endswith("random weights")
    (line,) = [m for m in caplog.messages if "random weights" in m]
    assert "stages=profiler leaves out warm_start" in line
