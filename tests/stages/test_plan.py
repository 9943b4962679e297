"""Stage plan: on eight devices that are there, and with the TPU compiler if it is."""

import importlib.util
import json

import jax
import pytest

from blue import main
from blue.errors import UserError
from blue.models import families
from blue.models.params import abstract_params
from blue.runtime import programs
from blue.runtime.sharding import make_mesh
from blue.stages import plan
from configs import profiler_amazon_clothing_qwen3
from tests.helpers.plans import GIB, V6E, tiny


@pytest.fixture(scope="module")
def found():
    """The plan of a tiny run on 4 x 2 devices of this machine."""
    config = tiny(batch_size=8, microbatch_size=4, remat="layers")
    mesh = make_mesh(1, 4, 2, devices=jax.devices())
    profiler, encoder = families.preset("tiny_gemma3"), families.preset("tiny_qwen3")
    with programs.descriptions_only():
        return plan.make_plan(config, mesh, V6E, profiler, encoder)


@pytest.mark.slow
def test_every_program_of_a_step_is_there(found):
    assert list(found["programs"]) == [
        "relayout", "prefill", "decode_step", "reference", "update", "choice",
        "encode", "encode_items", "encoder_update", "ranking",
    ]  # fmt: skip
    assert all(program["fits"] for program in found["programs"].values())
    assert found["advice"] == [] and found["chips"] == 8
    assert json.loads(json.dumps(found)) == found


@pytest.mark.slow
def test_work_is_that_of_the_formulas_however_many_loops_there_are(found):
    """tiny_gemma3 scans over its layers, the update over two micro-batches."""
    for name, program in found["programs"].items():
        wanted = program["formula_flops_per_chip"]
        assert program["flops_per_chip"] == pytest.approx(wanted, rel=0.05), name
        assert (wanted > 0) == (name != "relayout")


@pytest.mark.slow
def test_weights_travel_once_a_step_to_the_decode_layout_and_never_a_token(found):
    moved = {name: p["collectives"] for name, p in found["programs"].items()}
    assert "all-gather" in moved["relayout"] and "all-gather" in moved["update"]
    gathered = moved["decode_step"].get("all-gather", {"bytes": 0})["bytes"]
    copy = found["resident_gib"]["decode_copy"] * GIB
    assert gathered < 1e-3 * copy  # parts of a token's logits over `tensor`
    assert "reduce-scatter" in moved["update"] or "all-reduce" in moved["update"]


@pytest.mark.slow
def test_resident_arrays(found):
    """float32 profiler and Adam over 8 chips; the decode copy over `tensor` alone."""
    resident = found["resident_gib"]
    cfg = families.preset("tiny_gemma3")
    whole = 4 * sum(
        leaf.size
        for leaf in jax.tree.leaves(abstract_params(cfg, make_mesh(1, 8, 1), "float32"))
    )
    assert resident["profiler"] == pytest.approx(whole / 8 / GIB, rel=0.05)
    assert resident["optimizer"] == pytest.approx(2 * whole / 8 / GIB, rel=0.05)
    assert resident["decode_copy"] == pytest.approx(whole / 2 / GIB, rel=0.05)
    total = sum(v for k, v in resident.items() if k != "total")
    assert resident["total"] == pytest.approx(total)


@pytest.mark.slow
def test_a_step_is_the_sum_of_its_calls(found):
    p, step = found["programs"], found["step"]
    longest = lambda name: max(p[name]["roofline_s"].values())
    rollout = longest("relayout") + longest("prefill") + 12 * longest("decode_step")
    assert step["phases"]["rollout"] == pytest.approx(rollout)
    assert step["seconds"] == pytest.approx(sum(step["phases"].values()))
    assert "items" not in step["phases"]  # once a run
    assert step["tokens_per_s"] == pytest.approx(8 * 4 * 12 / step["seconds"])


def test_a_plan_is_json_that_anyone_reads():
    made = plan.finite({"a": [1.0, float("inf")], "b": {"c": float("nan"), "d": "x"}})
    assert made == {"a": [1.0, None], "b": {"c": None, "d": "x"}}
    json.dumps(made, allow_nan=False)


def test_mistakes_cost_one_line(monkeypatch, tmp_path, capsys):
    missing = importlib.util.find_spec("libtpu") is None
    flags = ["--config=configs/base.py:tiny", f"--workdir={tmp_path}"]
    if missing:
        with pytest.raises(UserError, match=r"extra `tpu`"):
            plan.topology("v6e:8x8")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: n == "libtpu" or real(n))
    with pytest.raises(UserError, match="'v7x' is not known; write one of v5e, v5p"):
        plan.topology("v7x:2x2")
    assert main.main(["blue", *flags, "--config.stages=('plan','evaluate')"]) == 2
    assert "it runs alone" in capsys.readouterr().err


def test_the_second_profiler_of_the_paper_is_a_config():
    config = profiler_amazon_clothing_qwen3.get_config()
    assert families.preset(config.profiler.preset).num_layers == 28
    assert config.batch_size == 64 and config.dtype.compute == "bfloat16"


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v6e:2x4", "v5e:2x2", "v5p:2x2x1"])
def test_the_tpu_compiler_itself(topology, tmp_path):
    """Its programs do the work of the formulas, and it needs no data and no weights."""
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    import os
    import subprocess
    import sys

    command = [sys.executable, "-m", "blue.main", "--config.stage=plan"]
    command += ["--config=configs/profiler_amazon_clothing.py:tiny"]
    command += [f"--workdir={tmp_path}", f"--config.plan.topology={topology}"]
    subprocess.run(command, check=True, env=os.environ | {"XLA_FLAGS": ""})
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["topology"] == topology and found["chips"] in (4, 8)
    for name, program in found["programs"].items():
        wanted = program["formula_flops_per_chip"]
        assert program["flops_per_chip"] == pytest.approx(wanted, rel=0.05), name
        assert program["fits"] and program["bytes_per_chip"] > 0
    assert "all-gather" not in found["programs"]["decode_step"]["collectives"]
    page = (tmp_path / "plan.md").read_text()
    assert f"# Plan for {topology}" in page and "Every program fits." in page
