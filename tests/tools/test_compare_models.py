"""The checker: differences by hand, runs and their exports, mistakes in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from blue.errors import UserError
from blue.stages import train_encoder, warm_start
from blue.text.tokenizer import train_tokenizer
from configs import quickstart
from tools import compare_models

FIXTURES = Path(__file__).parents[1] / "fixtures"
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


@pytest.mark.parametrize("role", ["profiler", "encoder"])
def test_a_model_that_answers_nan_is_never_alike(role, tmp_path, capsys):
    model = FIXTURES / "qwen3_untied"
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    name = HEAD if role == "profiler" else "model.norm.weight"
    tensors[name][3] = np.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    flags = ["--random-tokens=4,6", "--max-difference=9", f"--role={role}"]
    for pair in [(model, broken), (broken, model), (broken, broken)]:
        assert compare_models.main([*map(str, pair), *flags]) == 2
        side = "A" if pair[0] == broken else "B"
        told = capsys.readouterr().err.splitlines()
        assert told[-1].startswith(f"error: {side}: text 0, position 0: the answer is")


def test_encoders_get_their_own_tokens_and_profilers_one_vocabulary(capsys):
    texts = ["red tents", "blue lamps and red tents"] * 40
    a = train_tokenizer(texts, vocab_size=512)
    b = train_tokenizer([*texts, *["green"] * 99], vocab_size=512)
    assert a.vocab_size < b.vocab_size
    own = compare_models.make_rows([a, b], texts[:2], "encoder", 99)
    for tokenizer, rows in zip((a, b), own, strict=True):
        assert [row.ids for row in rows] == tokenizer.pooled_batch(texts[:2])
    assert "its own tokens" in capsys.readouterr().err
    cut = compare_models.make_rows([a, None], texts[:2], "encoder", 2)
    assert all(row.ids[-1] == a.pool_id and len(row.ids) == 2 for row in cut[1])
    with pytest.raises(UserError, match="one vocabulary"):
        compare_models.make_rows([a, b], texts, "profiler", 99)


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


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["warm_start", "encoder"])
def test_a_stage_is_its_export_and_not_its_start(stage, run, capsys):
    role = "encoder" if stage == "encoder" else "profiler"
    texts = f"--texts={run}/texts"
    best, last, start = f"{run}:{stage}", f"{run}:{stage}@2", f"{run}:{stage}@0"
    exported = compare(capsys, best, run / "export" / role, texts, f"--role={role}")
    assert exported["max_difference"] < 1e-5
    assert compare(capsys, best, last, texts)["max_difference"] == 0
    assert compare(capsys, last, start, texts)["max_difference"] > 1e-3


@pytest.mark.slow
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
    assert "lengths are such as" in told(qwen, qwen, "--random-tokens=3,x")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"words": "b"}\n')
    assert 'no JSON with "text"' in told(qwen, qwen, f"--texts={tmp_path}/bad.jsonl")
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    assert "no config of a run" in told(tmp_path / "other", qwen, texts)
    with pytest.raises(UserError, match="GB are free"):
        compare_models.check_room(10**18, str(tmp_path))
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
