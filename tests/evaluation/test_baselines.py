"""Rankers without a model and profiles by rule, by hand and by brute force."""

import numpy as np
import pytest

from blue.data.log import Log
from blue.errors import UserError
from blue.evaluation import baselines, protocols
from tests.helpers.small_world import make_examples, make_split

COLUMNS = {
    "genres": ["Drama", "Comedy, Drama", "War", "", "Noir, War"],
    "year": ["1999", "2001", "1950", "1980", ""],
    "maker": ["a", "b", "b", "", ""],
}


def histories(*rows):
    return [np.array(row, np.int32) for row in rows]


def test_chance_is_the_same_for_a_block_and_for_candidates_and_is_uniform():
    counts = np.arange(5000)
    chance = baselines.chance(np.array([3, 7, 8]), seed=0)
    popularity = baselines.popularity(counts)
    rows = np.array([0, 2])
    picked = np.array([[1000, 1007], [4999, 1500]])
    for ranker in (chance, popularity):
        block = ranker.score(rows, slice(1000, 5000))
        gathered = ranker.score(rows, picked)
        assert block.shape == (1, 2, 4000) and gathered.shape == (1, 2, 2)
        for at in range(2):
            there = picked[at] - 1000
            np.testing.assert_array_equal(gathered[:, at], block[:, at, there])
    assert (popularity.score(rows, slice(1000, 5000)) == counts[1000:]).all()
    (random,) = chance.score(rows, slice(1000, 5000))
    assert (0 <= random).all() and (random < 1).all()
    assert abs(random.mean() - 0.5) < 0.01 and abs(random.std() - 12**-0.5) < 0.01
    assert abs(np.corrcoef(random)[0, 1]) < 0.05  # rows know nothing of each other
    alone = baselines.chance(np.array([8]), seed=0)
    np.testing.assert_array_equal(
        alone.score(np.array([0]), slice(1000, 5000))[0, 0], random[1]
    )
    other = baselines.chance(np.array([8]), seed=1)
    assert (other.score(np.array([0]), slice(1000, 5000))[0, 0] != random[1]).all()


def test_mean_vectors_by_hand():
    table = np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], np.float32)
    split = make_split([[0, 1], [3, 0, 1], []], [2, 2, 2], [0, 1, 2], [[], [], []])
    rows = np.arange(3)
    every = baselines.history_vectors(split, rows, table)
    half = 0.5**0.5
    np.testing.assert_allclose(every, [[half, half], [0, 1], [0, 0]], atol=1e-6)
    newest = baselines.history_vectors(split, rows, table, newest=1)
    np.testing.assert_allclose(newest, [[0, 1], [0, 1], [0, 0]], atol=1e-6)
    centre = baselines.mean_vector(table, np.array([0, 3]))
    np.testing.assert_allclose(centre, [0, 0])
    centre = np.array([1, 0], np.float32)  # item 0 becomes 0, 1 (-1, 1), 3 (-2, 0)
    centred = baselines.history_vectors(split, rows, table, centre=centre)
    np.testing.assert_allclose(centred[0], [-half, half], atol=1e-6)
    mean = np.array([-half - 1, half])
    np.testing.assert_allclose(centred[1], mean / np.linalg.norm(mean), atol=1e-6)


def test_ease_is_the_ridge_regression_of_each_item_on_the_others():
    """Column by column: an item's own weight is held at zero, the others are free."""
    seen = (np.random.default_rng(0).random((30, 7)) < 0.4).astype(np.float64)
    weights = baselines.ease_weights(seen.T @ seen, l2=3.0)
    for item in range(7):
        others = np.arange(7) != item
        x = seen[:, others]
        solved = np.linalg.solve(x.T @ x + 3.0 * np.eye(6), x.T @ seen[:, item])
        np.testing.assert_allclose(weights[others, item], solved, atol=1e-10)
        assert weights[item, item] == 0.0


def test_ease_knows_training_users_and_ranks_by_the_history():
    """Users 0 and 1 train; item 4 occurs with the test user alone."""
    events = [(0, 0), (0, 1), (0, 1), (1, 1), (1, 2), (1, 3), (2, 0), (2, 4), (2, 1)]
    user, item = np.array(events, np.int32).T
    log = Log(
        "x", ["a", "b", "c"], list("vwxyz"), [], [], user, item, *[user] * 2, 9, {}
    )
    train = make_split([[0], [1]], [1, 2], [0, 1], [[], []])
    test = make_split([[0, 4, 0], []], [1, 1], [2, 2], [[], []])
    examples = make_examples(test, [1, 2, 1, 1, 0])._replace(train=train)
    ranker = baselines.ease(log, examples, test, np.arange(2), l2=2.0)
    seen = np.array([[1, 1, 0, 0], [0, 1, 1, 1]], float)  # a repeat counts once
    weights = baselines.ease_weights(seen.T @ seen, l2=2.0)
    scores = ranker.score(np.arange(2), slice(0, 5))[0]
    np.testing.assert_allclose(scores[0], [*weights[0], 0], atol=1e-6)
    np.testing.assert_allclose(scores[1], 0)  # nothing known
    some = ranker.score(np.array([0]), np.array([[4, 1, 0]]))[0]
    np.testing.assert_array_equal(some[0], scores[0, [4, 1, 0]])
    assert np.argmax(scores[0]) == 1  # what was taken with item 0


def test_constant_profile_names_the_most_popular():
    titles = ["a", "b", "c", "d"]
    found = baselines.constant_profile(titles, np.array([1, 5, 0, 5]), num=3)
    assert found == "b, d, a"


def test_pseudo_item_by_hand():
    template = "{genres} movie ({year}), {maker}"
    found = baselines.pseudo_items(
        template, COLUMNS, histories([0, 1, 2], [2, 1, 4], [0], [4], [])
    )
    assert found == [
        # Drama twice, then the newest first: War (item 2), Comedy (item 1)
        "Drama, War, Comedy movie (1999), b, a",
        "War, Noir, Comedy movie (1950), b",  # of an even number the lower median
        "Drama movie (1999), a",
        "Noir, War movie ,",  # without year and maker: no empty brackets
        "",
    ]


def test_pseudo_item_is_one_safe_line():
    columns = {"genres": ["[x]\n| y\u202e", "{year}"]}
    (found,) = baselines.pseudo_items("{genres} film", columns, histories([0, 1]))
    assert "\n" not in found and not set(found) & set("[]|\u202e")
    assert "{year}" in found  # values are no templates


@pytest.mark.parametrize(
    "template, says",
    [
        ("{actor} film", r"\{actor\} is no item column; known: genres, year, maker"),
        ("{genres.__class__}", "genres.__class__"),
        ("{genres!r}", "is no item column"),
        ("{genres", "data.pseudo_item_template='{genres'"),
    ],
)
def test_template_mistakes_are_told_in_one_line(template, says):
    with pytest.raises(UserError, match=says) as error:
        baselines.pseudo_items(template, COLUMNS, histories([0]))
    assert "\n" not in str(error.value)


def test_rankers_score_in_the_whole_catalogue_as_among_candidates():
    """What a full pass counts is what gathered candidates give."""
    split = make_split([[0, 1], [2]], [5, 6], [0, 1], [[], []])
    counts = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    examples = make_examples(split, counts)
    targets = protocols.make_targets(split, np.arange(2), examples.title_group)
    for ranker in (
        baselines.chance(np.array([1, 2]), seed=0),
        baselines.popularity(counts),
    ):
        found = protocols.rank_all(ranker, targets, np.ones((8, 1)), block=3)
        for row in range(2):
            owned = set(targets.own[row].tolist()) - {int(targets.items[row])}
            others = [i for i in range(8) if i not in owned and i != targets.items[row]]
            candidates = np.array([[targets.items[row], *others]])
            ranks, _ = protocols.rank_candidates(ranker, np.array([row]), candidates)
            np.testing.assert_array_equal(ranks[:, 0], found.ranks[:, row])
    assert found.top[0, 0].tolist()[:3] == [7, 4, 2]  # 5 is the user's own
