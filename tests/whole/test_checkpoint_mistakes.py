"""A checkpoint that is not what it says: one line, exit code 2, nothing run."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from blue.hub.directory import save_decoder
from blue.main import main
from blue.models import gemma3
from blue.models.decoder import init_params
from blue.text.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]
WEIGHTS, Q1 = "model.safetensors", "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A good directory: weights and tokenizer."""
    directory = tmp_path_factory.mktemp("checkpoint") / "model"
    tokenizer = train_tokenizer(["a few words and some more"] * 3, vocab_size=512)
    size = -(-tokenizer.vocab_size // 8) * 8
    cfg = dataclasses.replace(gemma3.tiny_gemma3(), vocab_size=size, num_layers=2)
    init = jax.jit(init_params, static_argnums=0)
    save_decoder(directory, cfg, init(cfg, jax.random.key(0)))
    tokenizer.save(directory)
    return directory


def change_tensors(directory, change):
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def change_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def cut(directory):
    path = directory / WEIGHTS
    path.write_bytes(path.read_bytes()[:-4])


def lie(directory):
    path = directory / WEIGHTS
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F64"', 1))


def only_a_pickle(directory):
    (directory / WEIGHTS).unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(np.ones(3)))


def index(name):
    def damage(directory):
        (directory / WEIGHTS).rename(directory / "a.safetensors")
        content = {"weight_map": {Q1: name}}
        (directory / f"{WEIGHTS}.index.json").write_text(json.dumps(content))

    return damage


DAMAGES = {
    "missing": (
        lambda d: change_tensors(d, lambda t: t.pop(Q1)),
        ["model: ", Q1, "[64, 64]", "missing"],
    ),
    "extra": (
        lambda d: change_tensors(d, lambda t: t.update(more=np.ones(3))),
        [WEIGHTS, "'more'", "[3]", "not part of the model"],
    ),
    "shape": (
        lambda d: change_tensors(d, lambda t: t.update({Q1: t[Q1][:8].copy()})),
        [WEIGHTS, Q1, "[8, 64]", "[64, 64]"],
    ),
    "absent": (index("b.safetensors"), ["b.safetensors", "No such file"]),
    "outside": (index("../x.safetensors"), ["index.json", Q1, "'../x.safetensors'"]),
    "cut off": (cut, [WEIGHTS, "cut off"]),
    "lying header": (lie, [WEIGHTS, "is F64 of shape", "data_offsets"]),
    "pickle": (only_a_pickle, ["pytorch_model.bin", "not opened", WEIGHTS]),
    "architecture": (
        lambda d: change_json(d / "config.json", model_type="llama"),
        ["config.json", "'llama'", "gemma3_text", "qwen3"],
    ),
    "tokenizer": (
        lambda d: (
            change_tensors(
                d,
                lambda t: t.update(
                    {k: v[:64].copy() for k, v in t.items() if "embed_tokens" in k}
                ),
            ),
            change_json(d / "config.json", vocab_size=64),
        ),
        ["64 rows", "ids", "tokenizer"],
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_bad_checkpoint_costs_one_line(name, model, tmp_path, capsys):
    damage, parts = DAMAGES[name]
    directory = Path(shutil.copytree(model, tmp_path / "model"))
    damage(directory)
    code = main(
        [
            "blue",
            f"--config={ROOT}/configs/quickstart.py:tiny",
            f"--workdir={tmp_path}/run",
            "--config.stage=write_profiles",
            f"--config.profiler.checkpoint={directory}",
        ]
    )
    said = capsys.readouterr().err.splitlines()
    assert code == 2 and len(said) == 1 and said[0].startswith("error: "), said
    for part in parts:
        assert part in said[0], said[0]
    assert not (tmp_path / "run/profiles.jsonl").exists()
