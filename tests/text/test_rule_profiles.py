"""Profiles written by rules."""

import re
from collections import Counter

import numpy as np
import pytest

from blue.text import prompts
from blue.text.rule_profiles import profile_word_stats, template_profile
from blue.text.templates import TEMPLATES
from tests.helpers import made_up_text

FULL, SHORT = TEMPLATES["full"], TEMPLATES["short"]


@pytest.fixture(scope="module")
def titles():
    return made_up_text.titles()


# --- profiles written by rules


def likes(text):
    words = re.fullmatch(r"The user likes (.+)\.", text)
    assert words, text
    return re.split(r", | and ", words[1])


def test_template_profile_draws_distinct_words_of_the_titles(titles):
    rng = np.random.default_rng(0)
    shown = titles[:20]
    for _ in range(50):
        drawn = likes(template_profile(SHORT, shown, num_items=8, rng=rng))
        assert len(drawn) == len(set(drawn)) == 8
        assert set(drawn) <= set(" ".join(shown).split())


def test_template_profile_worked_out():
    make = lambda titles, n, seed=0: template_profile(
        FULL, titles, num_items=n, rng=np.random.default_rng(seed)
    )
    assert make(["jazz"], 3) == "The user likes jazz."
    assert make(["jazz Jazz JAZZ"], 3) in (
        f"The user likes {word}." for word in ("jazz", "Jazz", "JAZZ")
    )
    assert sorted(likes(make(["The Piano of a Man", "99 to go"], 9))) == [
        "Man",
        "Piano",
    ]
    assert make([], 3) == "The user is new."
    assert make(["42", "7"], 1) in ("The user likes 42.", "The user likes 7.")
    assert sorted(likes(make(["映画 音楽"], 2))) == ["映画", "音楽"]


def test_template_profile_is_a_function_of_the_generator(titles):
    make = lambda seed: template_profile(
        SHORT, titles[:20], num_items=8, rng=np.random.default_rng(seed)
    )
    assert make(1) == make(1)
    assert len({make(seed) for seed in range(20)}) > 15


def test_template_profile_prefers_words_that_occur_often():
    titles = ["piano"] * 9 + ["organ"]
    rng = np.random.default_rng(0)
    drawn = Counter(
        likes(template_profile(SHORT, titles, num_items=1, rng=rng))[0]
        for _ in range(500)
    )
    assert 0.85 < drawn["piano"] / 500 < 0.95


def test_template_profile_takes_phrases_where_titles_are_separated():
    titles = ["Joe's Pizza | 5 Main Street", "Blue Note, Jazz Club", "Moma"]
    rng = np.random.default_rng(0)
    text = template_profile(FULL, titles, num_items=9, rng=rng)
    assert sorted(likes(text)) == [
        "5 Main Street",
        "Blue Note",
        "Jazz Club",
        "Joe's Pizza",
        "Moma",
    ]
    few = template_profile(FULL, ["a b, c", "Moma", "Tate"], num_items=9, rng=rng)
    assert sorted(likes(few)) == ["Moma", "Tate"]  # most titles are plain: words


def test_template_profile_is_bounded_and_safe():
    rng = np.random.default_rng(0)
    long = "very " * 40 + "long"
    text = template_profile(
        FULL, [f"{long}, {long}\n[B]", "x" * 500 + ", y]"], num_items=3, rng=rng
    )
    assert all(len(thing) <= 60 for thing in likes(text))
    assert prompts.make_safe(text) == text


def test_word_stats_worked_out():
    stats = profile_word_stats(
        "The user likes Jazz, jazz, piano and cheese.", ["Jazz Piano [Vol 2]", "Tea"]
    )
    assert stats == {"words": 4.0, "in_history": 0.75, "distinct": 0.75}
    nothing = profile_word_stats("The user likes and the.", ["Tea"])
    assert nothing == {"words": 0.0, "in_history": 0.0, "distinct": 0.0}


def test_word_stats_of_template_profiles_are_perfect(titles):
    rng = np.random.default_rng(0)
    text = template_profile(SHORT, titles[:20], num_items=8, rng=rng)
    stats = profile_word_stats(text, titles[:20])
    assert stats == {"words": 8.0, "in_history": 1.0, "distinct": 1.0}
