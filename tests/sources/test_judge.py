"""The judge that a config asks for."""

import numpy as np
import pytest

from blue.hub.model import Model
from blue.models import families
from blue.rewards import judges
from blue.runtime.shapes import Shapes
from blue.runtime.sharding import make_mesh
from blue.sources import judge as judge_source
from blue.text.templates import TEMPLATES
from configs import quickstart
from tests.helpers.small_model import few_words


@pytest.fixture
def made(monkeypatch):
    """What `judges.make_judge` was asked for; its judge scores by position."""
    asked = {}

    def make(*args, **kwargs):
        asked.update(kwargs, args=args)
        return lambda params, profiles, options: np.array(
            [[params + len(o) for o in row] for row in options], np.float32
        )

    monkeypatch.setattr(judges, "make_judge", make)
    return asked


def test_sizes_come_from_the_section_of_the_judge(made):
    config = quickstart.get_config("tiny")
    config.judge.update(scoring="letters", max_prompt_tokens=77, max_option_tokens=9)
    config.rewards.choice.num_options, config.evaluate.batch_size = 3, 16
    config.prompts.style = "full"
    model = Model(families.preset("tiny_qwen3"), {}, few_words(), "ours")
    model = model._replace(params=5)  # pyright: ignore
    choose = judge_source.make_choice_scorer(config, model, make_mesh(1, -1, 1))
    scores = choose(["likes a", "likes b"], [["x", "yy", ""], ["", "", "z"]])
    assert scores.tolist() == [[6, 7, 5], [5, 5, 6]]  # with the model's own parameters
    assert made["scoring"] == "letters"
    cfg, tokenizer, templates, _ = made["args"]
    assert (cfg, tokenizer) == (model.cfg, model.tokenizer)
    assert templates is TEMPLATES["full"]
    assert made["shapes"] == Shapes(batch=16, prompt=77, group=3, completion=9)
    assert made["precision"].compute == config.dtype.compute


def test_a_step_asks_about_every_profile_and_none():
    config = quickstart.get_config("tiny")
    config.update(batch_size=32, group_size=4, microbatch_size=0)
    assert judge_source.questions_at_a_time(config) == 32 * 5
    config.microbatch_size = 8
    assert judge_source.questions_at_a_time(config) == 8 * 5
