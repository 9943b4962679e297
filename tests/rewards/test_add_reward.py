"""Does what blue/rewards/README.md says, word for word: a reward and an ablation."""

import json
import re

import numpy as np
import pytest
from ml_collections import ConfigDict

from blue.errors import UserError
from blue.rewards import experience, functions, inputs
from blue.rewards.program import asks_judge, rewards_of, used_inputs
from blue.stages import train_profiler
from blue.workdir import settings
from configs import quickstart
from tests.helpers import small_stages
from tests.helpers.recipes import (
    lines_of,
    promised_lines,
    python_blocks,
    readme_section,
)
from tests.helpers.small_stages import one_layer  # noqa: F401

ADD = readme_section("blue/rewards/README.md", "How to add a reward")
ABLATION = readme_section("blue/rewards/README.md", "How to run an ablation")


@pytest.fixture
def section(monkeypatch):
    """The reward and the input of the recipe are there; its config line, as code."""
    reward, needed, line = python_blocks(ADD)
    for module, name, code in (
        (functions, "brevity", reward),
        (inputs, "num_words", needed),
    ):
        assert not hasattr(module, name)
        monkeypatch.setattr(module, name, None, raising=False)  # gone after the test
        exec(code, vars(module))
    return line


def test_the_recipes_have_the_promised_lines():
    assert lines_of(*python_blocks(ADD)) == promised_lines("a reward")
    assert lines_of(*python_blocks(ABLATION)) == promised_lines("an ablation")


@pytest.mark.usefixtures("one_layer")
def test_a_reward_is_a_function_an_input_and_a_section(section, tmp_path, monkeypatch):
    c = small_stages.make_config()
    c.stages, c.eval_every, c.lr_warmup_steps = ("profiler",), 0, 0
    c.log.samples_every, c.log.tensorboard = 100, False
    exec(section, {"c": c, "ConfigDict": ConfigDict})
    settings.check(c.lock())

    scored, score = [], experience.score

    def kept(*arguments):
        scored.append(score(*arguments))
        return scored[-1]

    monkeypatch.setattr(train_profiler, "score", kept)
    train_profiler.run(c, str(tmp_path))

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [0, 1]
    # the watched users' come after those of the step, of step 0 and of the last
    for row, seen in zip(rows, scored[::2], strict=True):
        words = [[len(p.text.split()) for p in group] for group in seen.profiles]
        want = [[min(5 - n, 0) for n in group] for group in words]
        np.testing.assert_array_equal(seen.parts["brevity"], want)
        assert row["reward/brevity"] == pytest.approx(np.mean(want))
        assert row["reward/brevity_std"] == pytest.approx(np.std(want, axis=1).mean())
        weights = {n: c.rewards[n].weight for n in seen.parts}
        total = sum(weights[n] * part for n, part in seen.parts.items())
        np.testing.assert_allclose(seen.total, total, rtol=1e-5)
    assert min(row["reward/brevity"] for row in rows) < 0  # some are longer
    sample = json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])
    too_many = max(len(sample["profile"].split()) - 5, 0)
    assert sample["rewards"]["brevity"] == -too_many


@pytest.mark.parametrize(
    "name, fields, said",
    [
        ("brevity", {"weight": 1.0, "max_word": 5.0}, r"brevity.max_word: no such fie"),
        ("brevity", {"weight": 1.0}, r"brevity.max_words is missing; brevity\(\) takes "
         "weight, max_words"),
        ("brevity", {"max_words": 5.0}, "brevity.weight is missing"),
        ("brevty", {"weight": 1.0}, "brevty: no such reward; known are brevity, choice,"
         " embedding, repetition, unfinished$"),
        ("combine", {"weight": 1.0}, r"combine: .*looks at parts, which is none of"),
    ],
)  # fmt: skip
def test_a_wrong_section_is_one_line(section, name, fields, said, tmp_path):
    c = quickstart.get_config("tiny")
    c.rewards[name] = ConfigDict(fields)
    with pytest.raises(UserError, match=f"^rewards.{said}") as error:
        train_profiler.run(c, str(tmp_path))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())  # nothing was loaded, nothing written


def test_the_ablation_is_a_config_of_a_few_lines(tmp_path):
    (code,) = python_blocks(ABLATION)
    path = tmp_path / "ablation.py"
    path.write_text(code)
    config, _ = settings.load(["blue", f"--config={path}:tiny", "--workdir=x"])
    command = re.search(r"`(--config[^`]*)`", ABLATION)
    assert command
    argv = ["blue", "--config=configs/quickstart.py:tiny", "--workdir=x"]
    other, _ = settings.load([*argv, *command[1].split()])
    assert config.to_dict() == other.to_dict() != settings.load(argv)[0].to_dict()
    rewards = rewards_of(config.rewards.to_dict())
    used = used_inputs(rewards)
    assert "history_profile_emb" in used and "profile_emb" not in used
    assert rewards["embedding"].arguments["u2i"] == 1.0
    assert [name for name, reward in rewards.items() if asks_judge(reward)] == [
        "choice"
    ]
