import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from blue.models import gemma3, qwen3
from blue.models.decoder import param_count
from tools.bench import gpu

ROOT = Path(__file__).parents[2]


def test_flops_of_the_update_by_hand():
    """One layer, two prompts of two tokens, one completion of one token each."""
    cfg = dataclasses.replace(
        qwen3.tiny_qwen3(), vocab_size=10, width=4, mlp_width=6, num_layers=1,
        num_heads=2, num_kv_heads=1, head_size=3, pattern=("global",),
    )  # fmt: skip
    matrices = 4 * 6 + 2 * 4 * 3 + 6 * 4 + 3 * 4 * 6  # q, k and v, o, mlp
    pairs = 2 * (1 + 2) + 2 * 3
    forward = 2 * matrices * 6 + 2 * 10 * 4 * 2 + 4 * 2 * 3 * pairs
    assert gpu.update_flops(cfg, 2, 1, 2, 1) == 3 * forward


def test_windows_limit_what_a_token_reads():
    cfg = dataclasses.replace(
        gemma3.tiny_gemma3(), num_layers=2, pattern=("local", "global"), window=4
    )
    row = 2 * 2 * cfg.num_kv_heads * cfg.head_size  # bytes of a key and its value
    read = lambda step: gpu.decode_bytes(cfg, 1, 3, 10, step) - 2 * param_count(cfg)
    # local: 3 of the prompt, 1 of its own; global: 10 and 1
    assert read(1) == row * (3 + 3 * 1 + 10 + 3 * 1)
    assert read(6) == row * (0 + 3 * 4 + 10 + 3 * 6)


@pytest.mark.slow
def test_it_runs_on_a_cpu_and_prints_one_line(tmp_path):
    command = [sys.executable, "tools/bench/gpu.py", "--tiny", f"--out={tmp_path}/r"]
    command += ["--peak-flops=1e12", "--peak-bandwidth=1e11"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found == json.loads((tmp_path / "r").read_text())
    blue = found["blue"]
    assert blue["attention"] == "xla" and blue["device"] == "cpu"
    assert all(blue[k] > 0 for k in ("update_mfu", "texts_per_s", "step_s"))
    assert blue["seconds"].keys() >= {"sample", "reference", "encode", "update"}
