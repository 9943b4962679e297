"""What a run may change when it goes on, and whether it may go on at all."""

import dataclasses
import json
import shutil

import pytest

from blue.errors import UserError
from blue.models import gemma3, qwen3
from blue.stages import warm_start
from blue.workdir import resume
from blue.workdir.checkpoints import COMMIT_FILE
from configs import quickstart

CONFIG = {
    "seed": 0,
    "lr": 1e-3,
    "batch_size": 8,
    "num_steps": 4,
    "log": {"every": 1},
    "mesh": {"fsdp": -1},
    "rewards": {"choice": {"weight": 1.0}},
    "buckets": (1, 2),
}


def make_note(config=CONFIG, **facts):
    known = {"model": {"width": 4}, "tokenizer": "t1", "data": "d1", "devices": 8}
    return resume.note(config, fields=("batch_size",), **known | facts)


def check(meta, wanted):
    resume.check(meta, wanted, "run/checkpoints/profiler")


def test_the_same_run_goes_on_in_silence(caplog):
    meta = json.loads(json.dumps(make_note()))  # as it comes from the disk
    check({"step": 3, **meta}, make_note())
    assert not caplog.records


# The architecture in a note of 6d1e727, before `family` and `qk_norms` were fields.
OLD_GEMMA = {
    "vocab_size": 1024, "width": 64, "mlp_width": 256, "num_layers": 3, "num_heads": 4,
    "num_kv_heads": 2, "head_size": 16, "pattern": [*["local"] * 5, "global"],
    "window": 512, "rope_theta": 1e6, "rope_theta_local": 1e4, "rope_factor": 1.0,
    "norm_eps": 1e-6, "norm_plus_one": True, "post_norms": True, "activation": "gelu",
    "scale_embedding": True, "query_scale": 0.0, "tied": True, "lora": None,
}  # fmt: skip
OLD_QWEN = OLD_GEMMA | {
    "mlp_width": 128, "num_layers": 2, "pattern": ["global"], "window": 0,
    "rope_theta": 1e4, "norm_plus_one": False, "post_norms": False,
    "activation": "silu", "scale_embedding": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "old, cfg",
    [(OLD_GEMMA, gemma3.tiny_gemma3()), (OLD_QWEN, qwen3.tiny_qwen3())],
    ids=["gemma3", "qwen3"],
)
def test_a_note_from_before_there_were_families(old, cfg, caplog):
    meta, fields = make_note(model=old), dataclasses.asdict(cfg)
    assert {*fields} - {*old} == {"family", "qk_norms"}
    check(meta, make_note(model=fields))
    assert not caplog.records
    with pytest.raises(UserError, match='model.family was "(gemma3|qwen3)", is "else"'):
        check(meta, make_note(model=fields | {"family": "else"}))
    with pytest.raises(UserError, match="model.qk_norms was true, is false"):
        check(meta, make_note(model=fields | {"qk_norms": False}))
    with pytest.raises(UserError, match="model.window was .*, is 7; put"):
        check(meta, make_note(model=fields | {"window": 7}))


@pytest.mark.parametrize(
    "wanted, parts",
    [
        (make_note(CONFIG | {"seed": 1}), ["seed was 0, is 1"]),
        (make_note(CONFIG | {"batch_size": 16}), ["batch_size was 8, is 16"]),
        (make_note(model={"width": 8}), ["model.width was 4, is 8"]),
        (make_note(model={}), ["model.width was 4, is not there"]),
        (make_note(data="d2"), ['data was "d1", is "d2"']),
        (
            make_note(CONFIG | {"seed": 2}, tokenizer="t2"),
            ["seed was 0, is 2; ", 'tokenizer was "t1", is "t2"'],
        ),
    ],
)
def test_another_run_is_refused_with_every_difference(wanted, parts):
    with pytest.raises(UserError) as caught:
        check(make_note(), wanted)
    said = str(caught.value)
    assert said.startswith("run/checkpoints/profiler: ") and "\n" not in said
    assert "another --workdir" in said
    for part in parts:
        assert part in said
    assert said.count(" was ") == len(parts)


def test_what_may_change_is_told(caplog):
    rewards = {"choice": {"weight": 0.5}}
    other = CONFIG | {"lr": 1e-4, "num_steps": 9, "rewards": rewards}
    check(make_note(), make_note(other | {"log": {"every": 7}}))
    (record,) = caplog.records
    told = record.getMessage()
    for part in ("lr was 0.001, is 0.0001", "num_steps was 4, is 9", "weight was 1.0"):
        assert part in told
    assert "log" not in told


@pytest.mark.parametrize(
    "wanted", [make_note(devices=4), make_note(CONFIG | {"mesh": {"fsdp": 2}})]
)
def test_another_mesh_is_allowed_and_flagged(wanted, caplog):
    check(make_note(), wanted)
    (record,) = caplog.records
    assert "not bit for bit" in record.getMessage()


def begin(workdir, stage, *names):
    for name in names or ("0",):
        (workdir / "checkpoints" / stage / name).mkdir(parents=True)


def refused(mode, workdir, stages, *parts):
    with pytest.raises(UserError) as caught:
        resume.open_stages(mode, str(workdir), stages)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_must_and_never(tmp_path):
    stages = ["warm_start", "profiler"]
    refused("must", tmp_path, stages, "warm_start, profiler", "right --workdir")
    resume.open_stages("must", str(tmp_path), ["write_profiles", "evaluate"])
    resume.open_stages("never", str(tmp_path), stages)
    resume.open_stages("auto", str(tmp_path), stages)
    begin(tmp_path, "warm_start")
    resume.open_stages("must", str(tmp_path), stages)
    resume.open_stages("never", str(tmp_path), ["profiler"])
    refused("never", tmp_path, stages, "warm_start has something in it")


def test_going_back_opens_one_stage(tmp_path):
    begin(tmp_path, "profiler")
    (tmp_path / "checkpoints/profiler/0" / COMMIT_FILE).write_text("")
    finished = tmp_path / "checkpoints/profiler/finished.json"
    finished.write_text("{}")
    refused("step:0", tmp_path, ["warm_start", "profiler"], "--config.stage=NAME")
    refused("step:0", tmp_path, ["warm_start"], "has begun")
    refused("step:3", tmp_path, ["profiler"], "no checkpoint 3, it has [0]")
    assert finished.exists()
    resume.open_stages("step:0", str(tmp_path), ["profiler"])
    assert not finished.exists()
    for mode in ("step:", "step:-1", "step:x", "yes", ""):
        with pytest.raises(UserError, match="must be auto, must, never or step"):
            resume.step_of(mode)
    assert resume.step_of("step:12") == 12 and resume.step_of("must") is None


@pytest.mark.slow
@pytest.mark.slow
def test_a_stage_goes_back_and_refuses_another_seed(tmp_path, caplog):
    config = quickstart.get_config("tiny")
    config.warm_start.num_steps = 2
    warm_start.run(config, str(tmp_path))
    folder = tmp_path / "checkpoints/warm_start"
    steps = lambda: sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())
    assert steps() == [0, 1, 2]
    lines = (tmp_path / "metrics.jsonl").read_text()

    config.resume = "step:1"
    resume.open_stages(config.resume, str(tmp_path), ["warm_start"])
    config.seed = 1
    with pytest.raises(UserError, match=r"data was .*; seed was 7, is 1"):
        warm_start.run(config, str(tmp_path))
    config.seed = 7
    config.warm_start.batch_size = 16
    with pytest.raises(UserError, match="warm_start.batch_size was 8, is 16"):
        warm_start.run(config, str(tmp_path))
    assert steps() == [0, 1, 2]

    config.warm_start.batch_size = 8
    warm_start.run(config, str(tmp_path))
    assert "removing" in caplog.text or steps() == [0, 1, 2]
    again = (tmp_path / "metrics.jsonl").read_text()
    loss = lambda text: [json.loads(line)["policy/loss"] for line in text.splitlines()]
    assert loss(again) == loss(lines)

    for step in ("0", "1", "2"):
        (folder / step / COMMIT_FILE).unlink()
    (folder / "finished.json").unlink()
    for step in ("1", "2"):
        shutil.rmtree(folder / step)
    shutil.rmtree(folder / "best")
    config.resume = "auto"  # as if broken off in its first save, but there are lines
    with pytest.raises(UserError, match="training had begun .*metrics.jsonl"):
        warm_start.run(config, str(tmp_path))
