"""Who answers the multiple choice: scores by letters and by likelihood."""

import functools

import jax
import numpy as np
import pytest

from blue.models import decoder, gemma3, qwen3
from blue.rewards import judges
from blue.runtime.shapes import Shapes
from blue.runtime.sharding import make_mesh
from blue.text import prompts
from blue.text.templates import TEMPLATES
from tests.helpers.small_model import FLOAT32, SHORT, WORDS, alone, few_words, make


def shapes():
    return Shapes(batch=8, prompt=40, group=3, completion=6)


def test_likelihood_judge_is_the_gain_over_the_empty_profile():
    tokenizer, mesh = few_words(), make_mesh(1, -1, 1)
    cfg, params = make(gemma3.tiny_gemma3, tokenizer, mesh)
    score = judges.make_judge(
        cfg, tokenizer, SHORT, mesh, scoring="likelihood", shapes=shapes(),
        precision=FLOAT32,
    )  # fmt: skip
    options = [
        ["red tent lamp", "blue chair", "apple"],
        ["green river", "stone", "red"],
    ]
    profiles = ["The user likes red.", "likes bread"]
    got = score(params, profiles, options)

    forward = jax.jit(functools.partial(decoder.forward, params, cfg))

    def logprob(profile, title):
        message = prompts.title_message(SHORT, profile)
        prompt = tokenizer.chat(message)
        target = tokenizer.encode(title) + [tokenizer.turn_end_id]
        hidden = np.asarray(alone(forward, prompt + target))
        logits = hidden[0, -len(target) - 1 : -1] @ np.asarray(params["embed"]).T
        logits = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return float(logits[np.arange(len(target)), target].sum())

    for row, profile in enumerate(profiles):
        for column, title in enumerate(options[row]):
            want = logprob(profile, title) - logprob("", title)
            np.testing.assert_allclose(got[row, column], want, atol=1e-4)
    np.testing.assert_allclose(score(params, ["", ""], options), 0.0, atol=1e-5)


def test_letter_judge_compares_letters_at_the_answer():
    tokenizer, mesh = few_words(), make_mesh(1, -1, 1)
    full = TEMPLATES["full"]
    cfg, params = make(qwen3.tiny_qwen3, tokenizer, mesh)
    sizes = shapes()._replace(prompt=400)
    score = judges.make_judge(
        cfg, tokenizer, full, mesh, scoring="letters", shapes=sizes,
        precision=FLOAT32,
    )  # fmt: skip
    options = [["red tent", "blue chair", "apple"]]
    got = score(params, ["likes bread"], options)
    message = prompts.choice_message(full, "likes bread", options[0])
    ids = np.asarray([tokenizer.chat(message)], np.int32)
    forward = jax.jit(decoder.forward, static_argnums=1)
    hidden = forward(params, cfg, ids, np.ones(ids.shape, bool))[:, -1]
    want = (hidden @ params["embed"].T)[:, np.asarray(tokenizer.letter_ids(3))]
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_a_question_that_cannot_fit_is_told():
    tokenizer = few_words()
    make_message = lambda p: prompts.title_message(SHORT, p)
    long = " ".join(WORDS * 20)
    ids = judges.fit_message(tokenizer, make_message, long, 30)
    assert len(ids) <= 30
    with pytest.raises(ValueError, match="judge.max_prompt_tokens = 2"):
        judges.fit_message(tokenizer, make_message, long, 2)
