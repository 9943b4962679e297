"""Stages of models of one layer: what tests of whole stages share."""

import dataclasses
import json

import jax
import optax
import pytest

from blue.data import synthetic
from blue.models import families
from blue.sources.encoder import load_encoder
from blue.sources.open_run import open_run
from blue.sources.profiler import load_profiler_base
from blue.stages import step_programs
from blue.training import session
from blue.training.loop import Loop
from configs import quickstart


def make_config():
    """The tiny quickstart, with as few programs to compile as there can be."""
    c = quickstart.get_config("tiny")
    c.train_encoder.batch_size = 8
    return c


def one_step_config():
    """The encoder and the warm start are trained for one step."""
    c = make_config()
    c.warm_start.num_steps = c.train_encoder.num_steps = 1
    return c


STEPS = 4


def four_step_config():
    """Every stage takes STEPS steps, with a checkpoint after every second."""
    c = make_config()
    c.num_steps = c.train_encoder.num_steps = c.warm_start.num_steps = STEPS
    c.warm_start.tasks = ("profile",)
    c.checkpoint_every, c.eval_every = 2, 4
    c.lr_warmup_steps = 0
    c.train_encoder.lr, c.warm_start.lr_warmup_steps = 1e-3, 1
    return c


def lines(workdir, stage, name="metrics.jsonl"):
    """What the stage wrote into the file, a dict a line."""
    rows = [json.loads(line) for line in (workdir / name).read_text().splitlines()]
    return [row for row in rows if row["stage"] == stage]


def end_stages(config, workdir):
    """Leaves in `workdir` an exported profiler and an exported encoder.

    Both stages end as after training; their parameters are other than at the start.
    """
    for stage, role, load in (
        ("encoder", "encoder", load_encoder),
        ("warm_start", "profiler", load_profiler_base),
    ):
        opened = open_run(config, str(workdir))
        model = load(opened, stage=stage)
        params = jax.tree.map(lambda x: x * 1.25, model.params)
        model = model._replace(params=params, origin="")
        loop = Loop(opened, stage, model, optax.sgd(0.1), num_steps=0)
        loop.finish(session.facts(opened, stage), role)


def remembered(function):
    """`function`, called once for the same arguments; objects are what they say."""
    results = {}

    def call(*args, **kwargs):
        key = str((args, sorted(kwargs.items())))
        if key not in results:
            results[key] = function(*args, **kwargs)
        return results[key]

    return call


@pytest.fixture(scope="module")
def same_updates():
    """A stage that runs again with the same config compiles and makes nothing anew.

    It takes the update programs that are there, and the same made-up log.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (synthetic, "make"),
            (session, "optimizer_of"),
            (step_programs, "make_encoder_update"),
            (step_programs, "make_sft_update"),
            (step_programs, "make_update"),
        ):
            patch.setattr(module, name, remembered(getattr(module, name)))
        yield


@pytest.fixture(scope="module")
def one_layer():
    """Presets have one layer, and the encoder's step one program, which holds any
    batch: what is traced and compiled takes half the time."""
    real, row_counts = families.preset, step_programs.row_counts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            families,
            "preset",
            lambda name: dataclasses.replace(real(name), num_layers=1),
        )
        patch.setattr(
            step_programs, "row_counts", lambda *a, **k: row_counts(*a, **k)[-1:]
        )
        yield
