"""Fields on the command line, and mistakes in them."""

import pytest

from blue.main import main
from tests.helpers.command import CONFIG, replace_stages, run


@pytest.fixture
def stages(monkeypatch):
    return replace_stages(monkeypatch)


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
        ("--config.judge.model=me", "judge.model is 'me', must be one of policy, ref"),
        ("--config.judge.scoring=a", "judge.scoring is 'a', must be one of letters"),
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


def test_a_stage_that_only_compiles_runs_alone(capsys, tmp_path, stages):
    code, (line,) = run(capsys, tmp_path, "--config.stages=plan,evaluate")
    assert code == 2 and "'plan' among others: it runs alone" in line
    assert not stages.ran
