"""What a plan compiles, and what lies beside it, without compiling anything."""

import dataclasses

import pytest

from blue.models import decoder, families
from blue.runtime import programs
from blue.runtime.sharding import make_mesh
from blue.stages import plan_programs
from configs import quickstart


@pytest.fixture
def config():
    return quickstart.get_config("tiny")


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(1, -1, 1)


PROFILER, ENCODER = (families.preset(f"tiny_{name}") for name in ("gemma3", "qwen3"))
STEP = {"relayout", "prefill", "decode_step", "reference", "update", "ranking"}
OWN = {"encode", "encode_items", "encoder_update"}


def parts_of(config, mesh):
    with programs.descriptions_only():
        return plan_programs.make_parts(config, mesh, PROFILER, ENCODER)


def test_an_encoder_that_is_not_ours_has_no_programs(config, mesh):
    assert parts_of(config, mesh).keys() - {"choice"} == STEP | OWN
    config.encoder.kind = "function"
    found = parts_of(config, mesh)
    assert found.keys() - {"choice"} == STEP
    # a completion takes as many decode steps as it may have tokens
    assert found["decode_step"].calls == config.max_completion_tokens
    assert found["update"].calls == found["prefill"].calls == 1


def test_resident_arrays_by_hand(config, mesh):
    """Float32 weights, two moments, a copy in the type of computing."""
    config.dtype.update(params="float32", compute="bfloat16")
    found = plan_programs.make_resident(config, mesh, PROFILER, ENCODER)
    gib = decoder.param_count(PROFILER) * 4 / 8 / 2**30  # of eight devices
    close = lambda value, want: value == pytest.approx(want, rel=0.05)
    assert close(found["profiler"], gib) and close(found["reference"], gib)
    assert close(found["optimizer"], 2 * gib)
    assert close(found["decode_copy"], 8 * gib / 2)  # whole on each, of half the size
    table = config.plan.num_items * ENCODER.width * 4 / 8 / 2**30
    assert found["item_table"] == pytest.approx(table)


def test_adapters_are_all_that_is_trained(config, mesh):
    config.profiler.lora.rank = 2
    found = plan_programs.make_resident(config, mesh, PROFILER, ENCODER)
    assert 0 < found["profiler"] < found["reference"] / 4
    assert found["optimizer"] == pytest.approx(2 * found["profiler"], rel=0.01)
    config.encoder.kind = "function"
    found = plan_programs.make_resident(config, mesh, PROFILER, ENCODER)
    assert found["encoder"] == 0
    wider = dataclasses.replace(ENCODER, width=128)  # of the item table alone, then
    other = plan_programs.make_resident(config, mesh, PROFILER, wider)
    assert other["item_table"] == 2 * found["item_table"]
