"""Programs of the training stages, described but not compiled."""

import dataclasses
import re

import jax
import pytest

from blue.errors import UserError
from blue.models import families
from blue.models.decoder import Lora
from blue.runtime import programs
from blue.runtime.shapes import Shapes
from blue.runtime.sharding import make_mesh
from blue.stages import step_programs
from configs import quickstart


@pytest.fixture
def config():
    return quickstart.get_config("tiny")


def names_of(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves}


def test_sizes_are_those_of_the_config(config):
    config.update(batch_size=16, group_size=3, max_completion_tokens=24)
    found = step_programs.profiler_shapes(config, 96)
    assert found == Shapes(batch=16, prompt=96, group=3, completion=24)
    config.train_encoder.update(query_tokens=40, item_tokens=56)
    assert step_programs.encoder_row_tokens(config) == 56  # either fits a row


def test_a_task_of_the_warm_start_has_one_program_however_often_it_is_named(config):
    config.warm_start.update(targets=2, batch_size=8, choice_batch_size=16)
    config.warm_start.tasks = ("choice", "profile", "choice")
    found = step_programs.warm_start_shapes(config)
    assert list(found) == ["choice", "profile"]
    assert (found["profile"].batch, found["profile"].group) == (8, 2)
    assert (found["choice"].batch, found["choice"].group) == (16, 1)


def test_adapters_are_the_updates_alone(config):
    mesh = make_mesh(1, -1, 1)
    lora = Lora(rank=2, alpha=4.0, targets=("q",))
    cfg = dataclasses.replace(families.preset("tiny_gemma3"), lora=lora)
    with programs.descriptions_only():
        found = step_programs.profiler_programs(
            config, cfg, mesh, (64, 128), end_ids=(1,), pad_id=0
        )
    assert (
        list(found.sample) == list(found.reference) == list(found.update) == [64, 128]
    )
    has_adapters = lambda program: any("q_a" in n for n in names_of(program.args))
    assert has_adapters(found.relayout)  # it merges them
    assert has_adapters(found.update[64])
    assert not has_adapters(found.reference[64])
    assert not has_adapters(found.sample[64].prefill)
    rows = config.batch_size
    assert [p.args[1].shape for p in found.reference.values()] == [
        (rows, 64), (rows, 128),
    ]  # fmt: skip


def test_the_encoders_programs_are_for_more_and_more_rows(config):
    mesh = make_mesh(1, -1, 1)
    cfg = families.preset("tiny_qwen3")
    with programs.descriptions_only():
        found = step_programs.encoder_programs(config, cfg, mesh)
    counts = list(found)
    assert counts == sorted(set(counts)) and all(n % mesh.size == 0 for n in counts)
    # the last holds a batch of texts that are as long as they may be
    assert counts[-1] * step_programs.encoder_row_tokens(config) >= (
        config.train_encoder.batch_size
        * (config.train_encoder.query_tokens + config.train_encoder.item_tokens)
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"batch_size": 6, "microbatch_size": 0},
            "batch_size = 6 must be a positive multiple of 4",
        ),
        ({"batch_size": 8, "microbatch_size": 6}, "microbatch_size = 6 must be a"),
        ({"batch_size": 12, "microbatch_size": 8}, "a multiple of microbatch_size = 8"),
        ({"num_negatives": 2}, "num_options = 4 must be at most num_negatives + 1 = 3"),
    ],
)
def test_sizes_that_do_not_fit_are_told_before_anything_is_compiled(
    config, changed, words
):
    mesh = make_mesh(1, 4, 1, devices=jax.devices()[:4])
    config.batch_size, config.microbatch_size, config.num_negatives = 8, 4, 3
    step_programs.check_profiler(config, mesh)
    config.update(changed)
    with pytest.raises(UserError, match=re.escape(words)):
        step_programs.check_profiler(config, mesh)
