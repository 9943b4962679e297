"""What a plan's compiled programs need."""

import pytest

from blue.inference import scoring
from blue.models import families
from blue.runtime import programs
from blue.runtime.shapes import Precision, Shapes
from blue.runtime.sharding import make_mesh
from blue.stages import plan
from blue.stages.plan_compile import (
    Compiled,
    Part,
    largest_of_message,
    largest_of_trace,
)
from tests.helpers.plans import GIB, V6E, tiny


def test_what_does_not_fit_says_what_would_help():
    message = """RESOURCE_EXHAUSTED: Ran out of memory. Used 61.36G of 31.25G hbm.

  1. Size: 16.00G
     Operator: op_name="jit(update)/head" source_file="x.py"
     Shape: f32[64,8,32,262144]{3,2,1,0:T(8,128)}
     ==========================

  2. Size: 512.5M
     Shape: bf16[64,4088,6912]{2,1,0}
"""
    part = Part(None, 1e12, (), "update", 1)
    compiled = Compiled(None, message, largest_of_message(message))
    entry = plan.describe(part, compiled, 1.0, V6E, chips_count=4)
    assert not entry["fits"] and entry["hbm_gib"] == {"total": 61.36}
    assert [x["gib"] for x in entry["largest"]] == [16.0, pytest.approx(0.5, rel=0.01)]
    assert "jit(update)/head f32[64,8,32,262144]" in entry["largest"][0]["name"]
    mesh = make_mesh(1, 8, 1)
    config = tiny(batch_size=64)
    lines = plan.advice({"update": entry}, config, mesh)
    assert lines[0].startswith("remat=layers")
    assert lines[1].startswith("microbatch_size=32 (now 64 users at a time; 8 needs")
    assert plan.advice({"update": entry | {"fits": True}}, config, mesh) == []


def test_what_the_compiler_does_not_name_is_named_by_the_trace():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for "
        "HLO temporaries (31.97G) exceeds available HBM (31.25G)."
    )
    assert largest_of_message(message) == []
    mesh = make_mesh(1, 8, 1)
    with programs.descriptions_only():
        program = scoring.make_completion_logprobs(
            families.preset("tiny_gemma3"), mesh, Shapes(8, 448, 2, 8),
            Precision("float32", "float32"), temperature=1.0,
        )  # fmt: skip
    largest = largest_of_trace(program)
    heads = families.preset("tiny_gemma3").num_heads
    assert largest[0]["name"].count("448") == 2  # attention of the prompts
    assert largest[0]["gib"] == pytest.approx(heads * 448 * 448 * 4 / GIB)
    part = Part(None, 1e12, (), "reference", 1)
    compiled = Compiled(None, message, largest)
    entry = plan.describe(part, compiled, 1.0, V6E, chips_count=8)
    assert not entry["fits"] and entry["hbm_gib"] == {"total": 31.97}


def test_memory_beside_a_program_counts():
    class Memory:
        argument_size_in_bytes, temp_size_in_bytes = 10 * GIB, 15 * GIB
        output_size_in_bytes, alias_size_in_bytes = 10 * GIB, 9 * GIB

    part = Part(None, 0.0, (), "update", 1)
    compiled = Compiled(Memory(), "", [], 1.0, 1.0, {})
    about = lambda beside: plan.describe(part, compiled, beside, V6E, chips_count=4)
    assert about(5.2)["hbm_gib"]["total"] == 26 and about(5.2)["fits"]
    assert not about(5.3)["fits"]
