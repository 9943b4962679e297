"""The checker: differences by hand, runs and their exports, mistakes in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from blue import train_encoder, warm_start
from configs import quickstart
from tools import compare_models

FIXTURES = Path(__file__).parent / "fixtures"
HEAD = "lm_head.weight"


def compare(capsys, *arguments):
    """The figures; the exit code is among them."""
    code = compare_models.main([*map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out.splitlines()[-1]) | {"code": code}


def test_a_changed_head_changes_what_it_should(tmp_path, capsys):
    """A word's logit plus 1 everywhere: its log-probability rises, the others fall."""
    model = FIXTURES / "qwen3_untied"
    same = compare(capsys, model, model, "--random-tokens=70,5", "--max-difference=0")
    assert same["code"] == same["max_difference"] == 0 and same["top1_agreement"] == 1
    assert same["positions"] == same["tokens"] == 75

    other = Path(shutil.copytree(model, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors[HEAD] = tensors[HEAD] * np.float32(0)  # every word alike: log 1/96
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    flat = compare(capsys, other, other, "--random-tokens=3")
    assert flat["worst: text, position, token, a, b"][3] == pytest.approx(-np.log(96))
    found = compare(
        capsys, model, other, "--random-tokens=70,5", "--max-difference=0.001"
    )
    text, position, _, a, b = found["worst: text, position, token, a, b"]
    assert found["code"] == 1 and b == pytest.approx(-np.log(96))
    assert found["max_difference"] == pytest.approx(abs(a - b))
    assert (text == 0 and position < 70) or (text == 1 and position < 5)
    assert 0 < found["mean_difference"] < found["max_difference"]
    assert found["max_difference_of_next_token"] <= found["max_difference"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two finished stages and their exports; the profiler's has LoRA."""
    workdir = tmp_path_factory.mktemp("checked")
    config = quickstart.get_config("tiny")
    config.stages = ("encoder", "warm_start")
    config.profiler.lora.rank = 2
    for stage in (train_encoder, warm_start):
        stage.run(config, str(workdir))
    record = {"config": config.to_dict()}
    (workdir / "config.json").write_text(json.dumps(record))
    (workdir / "texts").write_text("The user likes red tents\n\n<end_of_turn> blue\n")
    return workdir


@pytest.mark.parametrize("stage", ["warm_start", "encoder"])
def test_a_stage_is_its_export_and_not_its_start(stage, run, capsys):
    role = "encoder" if stage == "encoder" else "profiler"
    texts = f"--texts={run}/texts"
    best, last, start = f"{run}:{stage}", f"{run}:{stage}@2", f"{run}:{stage}@0"
    exported = compare(capsys, best, run / "export" / role, texts, f"--role={role}")
    assert exported["max_difference"] < 1e-5
    assert compare(capsys, best, last, texts)["max_difference"] == 0
    assert compare(capsys, last, start, texts)["max_difference"] > 1e-3


def test_mistakes_cost_one_line(run, capsys, tmp_path):
    qwen = FIXTURES / "qwen3"

    def told(*arguments):
        assert compare_models.main(list(map(str, arguments))) == 2
        lines = capsys.readouterr().err.splitlines()
        return lines[-1]

    assert "one of the two" in told(qwen, qwen)
    assert "no text in it" in told(qwen, qwen, f"--texts={_empty(tmp_path)}")
    assert "no tokenizer" in told(qwen, qwen, f"--texts={run}/texts")
    texts = f"--texts={run}/texts"
    assert "the stages are" in told(f"{run}:evaluate", qwen, texts)
    assert "a step is a number" in told(f"{run}:encoder@x", qwen, texts)
    assert "no run" in told(f"{run}:encoder", qwen, "--random-tokens=3")
    assert "no checkpoint 7" in told(f"{run}:encoder@7", f"{run}:encoder", texts)
    assert "hub id" in told("no where", qwen, "--random-tokens=3")
    assert "cannot be compared" in told(
        run / "export/profiler", qwen, "--random-tokens=3"
    )


def _empty(folder):
    (folder / "empty").write_text("\n \n")
    return folder / "empty"


@pytest.mark.parity
@pytest.mark.parametrize("name", ["gemma3", "qwen3", "qwen3_untied"])
def test_the_engines_agree(name, capsys):
    pytest.importorskip("torch", reason="needs the extra `parity`")
    model = FIXTURES / name
    flags = ["--random-tokens=14,9,70", "--engine-b=transformers"]
    assert compare(capsys, model, model, *flags)["max_difference"] < 1e-4
    found = compare(capsys, model, model, *flags, "--role=encoder")
    assert found["max_difference"] < 1e-5 and found["top1_agreement"] == 1


@pytest.mark.parity
def test_sentence_transformers_agrees_on_an_export(run, capsys):
    pytest.importorskip("sentence_transformers", reason="needs the extra `parity`")
    model = run / "export/encoder"
    (run / "plain").write_text("The user likes red tents\nblue lamps\n")
    flags = [f"--texts={run}/plain", "--engine-b=sentence_transformers"]
    assert compare(capsys, model, model, *flags)["max_difference"] < 1e-5
