"""The frame around the steps of a stage, around a model of two numbers."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blue.errors import NonFinite, Preempted
from blue.hub.model import Model
from blue.models import families
from blue.runtime import preemption
from blue.runtime.sharding import put, replicated
from blue.sources.open_run import open_run
from blue.sources.role import stage_checkpoints
from blue.training import loop as loops
from blue.training import session
from configs import quickstart

STAGE = "warm_start"


def make_config():
    c = quickstart.get_config("tiny")
    c.checkpoint_every, c.log.every, c.log.tensorboard = 2, 1, False
    c.max_nonfinite = 2
    return c


def make_loop(tmp_path, num_steps=5):
    run = open_run(make_config(), str(tmp_path))
    cfg = families.preset("tiny_gemma3")
    weights = {"layers": {"w": np.array([0.0, 10.0], np.float32)}}
    params = put(weights, replicated(run.mesh))
    tokenizer = SimpleNamespace(fingerprint="a tokenizer")
    model = Model(cfg, params, tokenizer, "ours")  # pyright: ignore
    return loops.Loop(run, STAGE, model, optax.sgd(0.1), num_steps=num_steps)


def about(tmp_path):
    return session.facts(open_run(make_config(), str(tmp_path)), STAGE)


def take(loop, step, skipped=0.0):
    """A step that adds 1 to the parameters, and what it tells."""
    state = loop.state
    layers = {"w": state.params["layers"]["w"] + 1}
    loop.state = state._replace(step=state.step + 1, params={"layers": layers})
    info = {"policy/loss": jnp.float32(step), "skipped_in_row": jnp.float32(skipped)}
    return loop.check(info, {"rows": np.full(2, step)})


def saved_steps(tmp_path):
    folder = tmp_path / "checkpoints" / STAGE
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def logged(tmp_path):
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line["policy/loss"]) for line in map(json.loads, lines)]


def run_to_the_end(loop):
    for step in loop:
        loop.report(take(loop, step), shown=("policy/loss",))


def test_steps_are_logged_and_saved(tmp_path):
    loop = make_loop(tmp_path)
    assert loop.first_step == 0
    due = []
    for step in loop:
        metrics = take(loop, step)
        assert metrics == {"policy/loss": float(step)}  # the count is not a metric
        assert loop.last == (step == 4)
        due.append((loop.due(3), loop.due(0)))
        loop.report(metrics, shown=("policy/loss",))
    assert due == [(False, False)] * 2 + [(True, False), (False, False), (True, False)]
    loop.writer.close()
    assert logged(tmp_path) == [(step, float(step)) for step in range(5)]
    assert saved_steps(tmp_path)[-1] == 5  # the last, though it is not a second one
    np.testing.assert_array_equal(loop.params["layers"]["w"], [5, 15])


def test_a_preempted_loop_saves_and_goes_on_where_it_was(tmp_path, monkeypatch):
    loop = make_loop(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(preemption, "requested", lambda: loop.step == 2)
        with pytest.raises(Preempted, match="step 3 is saved"):
            run_to_the_end(loop)
    again = make_loop(tmp_path)
    assert again.first_step == 3 and int(again.state.step) == 3
    np.testing.assert_array_equal(again.params["layers"]["w"], [3, 13])
    run_to_the_end(again)
    again.writer.close()
    assert [step for step, _ in logged(tmp_path)] == [0, 1, 2, 3, 4]
    assert list(make_loop(tmp_path)) == []  # nothing is left to do


def test_too_many_bad_steps_in_a_row_end_it(tmp_path):
    loop = make_loop(tmp_path)
    steps = iter(loop)
    take(loop, next(steps), skipped=1.0)
    with pytest.raises(NonFinite, match="step 1: 2 updates in a row"):
        take(loop, next(steps), skipped=2.0)
    loop.writer.close()
    kept = [path.name for path in (tmp_path / "bad_batches").rglob("*.npz")]
    assert len(kept) == 2  # the first of the row and the one that ended it


def test_the_best_is_kept_and_the_end_is_marked(tmp_path, monkeypatch):
    monkeypatch.setattr(loops.export, "write", lambda *args: written.append(args[2:4]))
    written, loop = [], make_loop(tmp_path)
    values = iter([0.2, 0.5, 0.4, 0.5, 0.1])
    for step in loop:
        metrics = take(loop, step)
        loop.keep_best(next(values))
        loop.report(metrics, shown=("policy/loss",))
    config, workdir = make_config(), str(tmp_path)
    assert not loops.is_finished(config, workdir, STAGE)
    loop.finish(about(tmp_path), "profiler")
    best = stage_checkpoints(config, workdir, STAGE).best()
    assert (best["step"], best["value"]) == (2, 0.5)  # the first of the equal ones
    assert written == [(workdir, "profiler")]
    assert loops.is_finished(config, workdir, STAGE)


def test_without_a_validation_the_last_is_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(loops.export, "write", lambda *args: None)
    loop = make_loop(tmp_path, num_steps=2)
    run_to_the_end(loop)
    loop.finish(about(tmp_path), "profiler")
    best = stage_checkpoints(make_config(), str(tmp_path), STAGE).best()
    assert best["step"] == 2
