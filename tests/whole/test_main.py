import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from blue.errors import NonFinite, Preempted, UserError
from blue.main import main
from blue.workdir import allowed, record, settings
from blue.workdir.stages import STAGES, trained_by
from configs import base

ROOT = Path(__file__).parents[2]
CONFIG = f"--config={ROOT}/configs/base.py"


@pytest.fixture
def stages(monkeypatch):
    """The stages replaced by one function, `stages.run`; the names they ran under."""
    fake = SimpleNamespace(run=lambda config, workdir: None, ran=[])

    def module(name):
        def run(config, workdir):
            fake.ran.append(name)
            fake.run(config, workdir)

        return SimpleNamespace(run=run)

    for name, stage in STAGES.items():
        monkeypatch.setitem(sys.modules, f"blue.stages.{stage.module}", module(name))
    return fake


def run(capsys, tmp_path, *arguments, config=CONFIG):
    """The exit code and the lines on stderr."""
    code = main(["blue", config, f"--workdir={tmp_path}/run", *arguments])
    return code, capsys.readouterr().err.splitlines()


# --- stages and exit codes


@pytest.mark.parametrize(
    "arguments, ran",
    [
        ([], ["profiler", "evaluate"]),
        (["--config.stages=encoder,evaluate"], ["encoder", "evaluate"]),
        (["--config.stages=('warm_start',)"], ["warm_start"]),
        (["--config.stage=encoder"], ["encoder"]),
    ],
)
def test_stages_run_in_order_or_one_alone(capsys, tmp_path, stages, arguments, ran):
    assert run(capsys, tmp_path, *arguments)[0] == 0
    assert stages.ran == ran


def test_overrides_reach_the_stage_with_the_types_of_the_config(
    capsys, tmp_path, stages
):
    def check(config, workdir):
        assert config.is_locked and workdir == f"{tmp_path}/run"
        assert config.lr == 1.0 and isinstance(config.lr, float)
        assert config.prompt_buckets == (96, 2048) and not config.log.tensorboard
        assert config.rewards.choice.weight == 0
        assert config.data["items"] == "films.csv"  # .items is a method of dicts
        assert config.evaluate.profiles.to_dict() == {"rlaif": "a=b.jsonl"}

    stages.run = check
    code, _ = run(
        capsys,
        tmp_path,
        "--config.lr=1",
        "--config.prompt_buckets=96,2048",
        "--noconfig.log.tensorboard",
        "--config.data.items=films.csv",
        "--config.rewards.choice.weight",
        "0",
        "--config.evaluate.profiles.rlaif=a=b.jsonl",
    )
    assert code == 0 and stages.ran


@pytest.mark.parametrize(
    "error, code, line",
    [
        (UserError("data.path: no file\n  events.csv"), 2, "data.path: no file events"),
        (NonFinite("3 updates in a row"), 70, "3 updates"),
        (Preempted("at step 7"), 75, "at step 7"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(capsys, tmp_path, stages, error, code, line):
    def fail(config, workdir):
        raise error

    stages.run = fail
    found, lines = run(capsys, tmp_path)
    assert found == code and line in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_a_bug_keeps_its_traceback(capsys, tmp_path, stages):
    def fail(config, workdir):
        raise ValueError("ours")

    stages.run = fail
    with pytest.raises(ValueError, match="ours"):
        run(capsys, tmp_path)


# --- the user's mistakes: one line, exit code 2, before any stage


@pytest.mark.parametrize(
    "argument, told",
    [
        ("--config.group_sise=4", 'Did you mean "group_size"'),
        ("--config.reward.choice.weight=0", 'Did you mean "rewards.choice.weight"'),
        ("--config.rewards.choice.reader=policy", "choice.reader is now judge.model"),
        ("--config.tensorboard=0", 'Did you mean "log.tensorboard"'),
        ("--config.data=3", 'Did you mean "data.'),
        ("--confg.lr=1", "'confg.lr'"),
        ("--config.data.synthetic.items=many", "must be int"),
        ("--config.group_size=2.5", "group_size=2.5"),
        ("--config.group_size=1", "group_size is 1, must be at least 2"),
        ("--config.batch_size=0", "batch_size is 0, must be at least 1"),
        ("--config.num_steps=0", "num_steps is 0"),
        ("--config.lr=nan", "lr is nan, must be finite"),
        ("--config.lr=-1e-6", "lr is -1e-06, must be at least 0"),
        ("--config.kl_coef=inf", "kl_coef is inf"),
        ("--config.sampling_temperature=0", "sampling_temperature is 0.0"),
        ("--config.top_p=1.5", "top_p is 1.5, must be at most 1"),
        ("--config.adam_b1=1", "adam_b1 is 1.0, must be in [0, 1)"),
        ("--config.rewards.choice.num_options=27", "num_options is 27"),
        ("--config.data.window_policy=weekly", "window_policy is 'weekly'"),
        ("--config.data.ties=random", "data.ties is 'random', must be one of hash"),
        ("--config.train_encoder.queries=items,all", "queries is ('items', 'all')"),
        ("--config.stage=profilr", 'Did you mean "profiler"'),
        ("--config.stages=()", "stages is empty"),
        ("--config.train_encoder.queries=()", "train_encoder.queries is empty"),
        ("--config.warm_start.tasks=title", "is ('title',), must be one of profile"),
        ("--config.prompts.style=long", "prompts.style is 'long', must be one of full"),
        ("--config.lr_schedule=linear", "lr_schedule is 'linear', must be one of"),
        ("--config.evaluate.protocols=()", "evaluate.protocols is empty"),
        ("--config.evaluate.protocols=full,2+98", "is ('full', '2+98'), must be one"),
        ("--config.evaluate.cold_start=0,-1", "cold_start is (0, -1)"),
        ("--config.evaluate.cold_start=few", "cold_start is ('few',)"),
        ("--config.evaluate.transfer.kind=own", "transfer.checkpoint is empty"),
        ("--config.evaluate.ease_l2=0", "evaluate.ease_l2 is 0.0, must be above 0"),
        ("--config.profiler.lora.rank=-1", "profiler.lora.rank is -1, must be at"),
        ("--config.encoder.lora.alpha=0", "encoder.lora.alpha is 0.0, must be above"),
        ("--config.encoder.lora.targets=q,embed", "is ('q', 'embed'), must be one of"),
        ("--config.mesh.data=-1", "at most one"),
        ("--config.mesh.tensor=0", "mesh.tensor is 0"),
        ("--config.prompt_buckets=512,256", "ascending"),
        ("--config.prompt_buckets=a,b", "ascending"),
        ("--config.max_prompt_tokens=4096", "must end with max_prompt_tokens 4096"),
        ("--config.profile_steps=5", "profile_steps is (5,), must be first and last"),
        ("--config.profile_steps=5,3", "profile_steps is (5, 3)"),
        ("--config.seed", "Missing value"),
        ("extra", "extra: not understood"),
    ],
)
def test_a_mistake_is_one_line(capsys, tmp_path, stages, argument, told):
    code, lines = run(capsys, tmp_path, argument)
    assert code == 2 and len(lines) == 1 and told in lines[0]
    assert not stages.ran and not (tmp_path / "run").exists()


def test_adapters_need_matrices(capsys, tmp_path, stages):
    none = "--config.profiler.lora.targets=()"
    code, (line,) = run(capsys, tmp_path, none, "--config.profiler.lora.rank=4")
    assert code == 2 and "profiler.lora.targets is empty" in line and not stages.ran
    assert run(capsys, tmp_path, none)[0] == 0  # rank 0: none are asked for


@pytest.mark.parametrize(
    "source, told",
    [
        (None, "there is no file"),
        ("def get_config(:\n", "line 1: SyntaxError"),
        ("\ndef get_config(arg=None):\n    return lr\n", "line 3: NameError"),
        ("def get_config(arg=None):\n    raise ValueError('no')", "line 2: ValueError"),
        ("def get_config(arg=None):\n    return {}", "no ConfigDict"),
        ("lr = 1\n", "get_config"),
        (
            "from ml_collections import ConfigDict\n"
            "def get_config(arg=None):\n    return ConfigDict({'lr': 1.0})",
            "no field batch_size",
        ),
        (
            "from configs.base import *\nbase = get_config\n"
            "def get_config(arg=None):\n    c = base()\n"
            "    c.rewards.choice.scoring = 'letters'\n    return c",
            "rewards.choice.scoring is now judge.scoring",
        ),
        (
            "from configs.base import *\nbase = get_config\n"
            "def get_config(arg=None):\n    c = base()\n"
            "    c.rewards.repetition.wieght = 1.0\n    return c",
            "rewards.repetition.wieght: no such field; repetition() takes weight",
        ),
    ],
)
def test_a_broken_config_file_is_one_line(capsys, tmp_path, source, told):
    path = tmp_path / "mine.py"
    if source is not None:
        path.write_text(source)
    code, lines = run(capsys, tmp_path, config=f"--config={path}")
    assert code == 2 and len(lines) == 1 and told in lines[0]


def test_an_unknown_config_argument_is_one_line(capsys, tmp_path):
    code, lines = run(capsys, tmp_path, config=f"{CONFIG}:tny")
    assert code == 2 and len(lines) == 1 and "'tny' is not known" in lines[0]


@pytest.mark.parametrize("missing", ["config", "workdir"])
def test_config_and_workdir_are_required(capsys, missing):
    both = {"config": CONFIG, "workdir": "--workdir=x"}
    assert main(["blue", *[v for k, v in both.items() if k != missing]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--{missing} is missing" in line


def test_a_workdir_that_cannot_be_is_one_line(capsys, tmp_path, stages):
    (tmp_path / "run").write_text("a file")
    code, lines = run(capsys, tmp_path)
    assert code == 2 and f"--workdir={tmp_path}/run" in lines[-1] and not stages.ran


# --- help


def test_help_names_every_stage_config_and_field_with_its_default(capsys):
    assert main(["blue", "--help"]) == 0
    shown = capsys.readouterr().out
    lines = [line.strip() for line in shown.splitlines()]
    assert lines[0].startswith("usage: python -m blue.main --config=")
    for name in STAGES:
        assert any(line.split()[:1] == [name] for line in lines)
    for path in (ROOT / "configs").glob("[!_]*.py"):
        assert f"configs/{path.name}" in shown
    for name, value in settings.leaves(base.get_config()):
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        (line,) = [line for line in lines if line.startswith(f"--config.{name}=")]
        flag = line.partition("=")[2]
        assert flag.startswith((text, f'"{text}"'))
    assert "users a step, global [P]" in shown
    assert "one a step: history_profile [P]" in shown  # a comment of two lines


def test_help_shows_itself_with_a_config_too(capsys):
    assert main(["blue", CONFIG, "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage:")


# --- config.json


def test_config_json_is_the_record_of_the_run(capsys, tmp_path, stages):
    run(capsys, tmp_path, "--config.group_size=3", "--config.mesh.tensor=2")
    found = json.loads((tmp_path / "run" / "config.json").read_text())
    expected = base.get_config()
    expected.group_size, expected.mesh.tensor = 3, 2
    assert found["config"] == json.loads(json.dumps(expected.to_dict()))
    assert found["mesh"] == {"data": 1, "fsdp": 4, "tensor": 2}
    assert found["devices"]["platform"] == "cpu" and found["devices"]["count"] == 8
    assert found["versions"]["jax"] == __import__("jax").__version__
    assert "git_commit" in found
    names = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert names == ["config.json", "heartbeat.json"]


def test_secrets_are_redacted_and_tokens_of_text_are_not():
    config = base.get_config()
    with config.unlocked():
        config.hub_token = "abc"
        config.service = {
            "api_key": "abc",
            "url": "https://me:pw@host/x",
            "password": "",
        }
    config.profiler.tokenizer = "hub/tokenizer"
    config.profiler.checkpoint = "hf_" + "a" * 30
    found = record.redacted(config)
    assert found["hub_token"] == found["service"]["api_key"] == "[redacted]"
    assert found["service"]["url"] == "https://[redacted]@host/x"
    assert found["service"]["password"] == ""
    assert found["profiler"]["checkpoint"] == "[redacted]"
    assert found["profiler"]["tokenizer"] == "hub/tokenizer"
    assert found["max_prompt_tokens"] == 2048
    assert found["tokenizer"] == config.tokenizer.to_dict()


def test_every_stage_module_exists():
    for stage in STAGES.values():
        assert (ROOT / "blue" / "stages" / f"{stage.module}.py").exists()


def test_the_table_says_what_each_stage_trains_and_may_not_change():
    assert trained_by("profiler") == ["warm_start", "profiler"]
    assert trained_by("encoder") == ["encoder"]
    fields = dict(settings.leaves(base.get_config()))
    for name, stage in STAGES.items():
        assert bool(stage.trains) == bool(stage.sizes), name
        assert set(stage.sizes) <= set(fields)


def test_every_field_with_limits_exists_and_its_default_is_allowed():
    fields = dict(settings.leaves(base.get_config()))
    named = {*allowed.MAY_BE_MINUS_1, *allowed.ABOVE_ZERO, *allowed.BELOW_ONE}
    named |= {*allowed.ONE_OF, *allowed.NOT_EMPTY}
    for bounds in (allowed.AT_LEAST, allowed.AT_MOST):
        named |= {name for names in bounds.values() for name in names}
    assert named <= set(fields)
    assert set(allowed.NOT_EMPTY) <= set(allowed.ONE_OF)


def test_a_stage_that_only_compiles_runs_alone(capsys, tmp_path, stages):
    code, (line,) = run(capsys, tmp_path, "--config.stages=plan,evaluate")
    assert code == 2 and "'plan' among others: it runs alone" in line
    assert not stages.ran
