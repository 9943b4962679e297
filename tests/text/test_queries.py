"""Users as text: what fits, who reads whose profile, prompts of the profiler."""

import numpy as np
import pytest

from blue.data.examples import Split
from blue.text import queries
from blue.text.prompts import query_prefix
from blue.text.templates import TEMPLATES
from blue.text.tokenizer import train_tokenizer

COLOURS = ("red", "blue", "green", "grey", "black")
THINGS = ("shoe", "tent", "lamp", "book", "chair", "knife")
TITLES = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TITLES * 3, vocab_size=512)


def make_format(tokenizer, **changes):
    f = queries.QueryFormat(
        templates=TEMPLATES["short"],
        prefix="",
        recent_items=4,
        num_tokens=lambda text: len(tokenizer.pooled(text)),
        max_tokens=64,
    )
    return f._replace(**changes)


def test_long_histories_lose_whole_oldest_titles(tokenizer):
    full = make_format(tokenizer, max_tokens=10_000)
    for kept in (1, 2, 7, 29, 30):
        expected = queries.history_query(full, TITLES[-kept:])
        max_tokens = len(tokenizer.pooled(expected))
        tight = make_format(tokenizer, max_tokens=max_tokens)
        assert queries.history_query(tight, TITLES) == expected
    # not even the newest title fits: it stays all the same
    tiny = make_format(tokenizer, max_tokens=2)
    assert queries.history_query(tiny, TITLES) == queries.history_query(
        full, ["black knife"]
    )
    assert queries.history_query(tiny, []) == queries.history_query(full, [])


def test_instruction_counts_and_is_on_every_query(tokenizer):
    plain = make_format(tokenizer)
    asked = make_format(tokenizer, prefix=query_prefix("find the next item"))
    for query in (
        queries.profile_query(asked, "likes tents"),
        queries.history_query(asked, TITLES[:2]),
        queries.history_profile_query(asked, TITLES[:2], "likes tents"),
    ):
        assert query.startswith("Instruct: find the next item\nQuery:")
    tokens = len(tokenizer.pooled(queries.history_query(plain, TITLES[:4])))
    kept = queries.history_query(asked._replace(max_tokens=tokens), TITLES[:4])
    assert TITLES[0] not in kept and TITLES[3] in kept


def test_recent_views_show_only_recent_titles(tokenizer):
    f = make_format(tokenizer)
    recent = queries.recent_query(f, TITLES)
    assert recent == queries.history_query(f, TITLES[-4:])
    both = queries.history_profile_query(f, TITLES, "likes tents")
    assert all(title in both for title in TITLES[-4:])
    assert TITLES[-5] not in both and "likes tents" in both


@pytest.mark.parametrize("num", [2, 3, 10, 101])
def test_other_users_is_a_derangement_fixed_by_the_seed(num):
    partners = queries.other_users(num, seed=3)
    assert sorted(partners) == list(range(num))
    assert (partners != np.arange(num)).all()
    np.testing.assert_array_equal(partners, queries.other_users(num, seed=3))
    if num > 3:
        assert (partners != queries.other_users(num, seed=4)).any()


def test_prompts_show_the_newest_items(tokenizer):
    items = np.arange(12, dtype=np.int32)
    split = Split(
        user=np.array([0, 1], np.int32),
        next_item=np.array([20, 21], np.int32),
        more_items=np.zeros((2, 0), np.int32),
        history_items=items,
        history_ratings=np.full(12, np.nan, np.float32),
        history_offsets=np.array([0, 4, 12]),
        own_items=items,
        own_offsets=np.array([0, 4, 12]),
        negatives=np.zeros((2, 3), np.int32),
        ids=np.array([5, 6]),
    )
    f = queries.PromptFormat(
        templates=TEMPLATES["short"],
        history_items=5,
        tokenizer=tokenizer,
        max_tokens=200,
    )
    first, second = queries.profile_prompts(f, split, np.array([1, 0]), TITLES)
    shown = tokenizer.decode(first)
    assert all(TITLES[i] in shown for i in range(7, 12)) and TITLES[6] not in shown
    assert all(TITLES[i] in tokenizer.decode(second) for i in range(4))
