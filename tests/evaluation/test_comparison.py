"""Protocols and the ranks they give, of three users and six items by hand."""

import numpy as np
import pytest
from etils import epath

from blue.data.log import Log
from blue.evaluation import cohort as cohorts
from blue.evaluation import comparison, metrics
from blue.evaluation.methods import Settings, Task
from blue.evaluation.protocols import Candidates, by_cosine
from blue.runtime.sharding import make_mesh
from tests.helpers.small_world import make_examples, make_split

TITLES = [f"item {i}" for i in range(6)]
SETTINGS = Settings(
    seed=0, negatives=2, recent_items=2, category="kind", pseudo_item_template="",
    ease_l2=1.0, ease_max_items=0,
)  # fmt: skip


@pytest.fixture
def task():
    split = make_split([[0], [1], [2]], [3, 4, 5], [0, 1, 2], [[4, 5], [3, 5], [3, 4]])
    log = Log(**dict.fromkeys(Log._fields) | {"titles": TITLES, "columns": {}})
    cohort = cohorts.choose_cohort(split, TITLES, limit=0)
    return Task(log, make_examples(split, [1] * 6), cohort, SETTINGS)


@pytest.fixture
def ranker(task):
    """Everybody asks for item 3. Items are orthogonal but for 4, between 3 and 5.

    So the first user's item comes first, item 4 second and item 5 last.
    """
    table = np.eye(6, dtype=np.float32)
    table[4] = np.sqrt([0, 0, 0, 0.5, 0, 0.5])
    return by_cosine(["three"], np.tile(table[3], (1, 3, 1)), table)


def test_rows_that_have_candidates_are_ranked_among_them(task, ranker):
    among = Candidates(np.array([0, 2]), np.array([[3, 4, 0], [5, 3, 4]]), "digest")
    found = comparison.rank_drawn(task.cohort, among, [ranker])
    assert found.rows.tolist() == [0, 2] and found.users.tolist() == [0, 2]
    np.testing.assert_array_equal(found.values["three"]["mrr"], [1, 1 / 3])
    facts = {name: found.facts[name] for name in ("candidates", "left_out")}
    assert facts == {"candidates": 3, "left_out": 1}
    assert found.facts["candidates_sha256"] == "digest"
    assert found.facts["chance"] == metrics.chance_metrics(np.array([3]))


def test_the_whole_catalogue_leaves_out_what_the_user_had(task, ranker):
    ranked, recommended = comparison.rank_catalogue(task, [ranker], make_mesh(1, -1, 1))
    # the target, and the four items that the user never touched
    assert ranked["full"].facts["candidates"] == 5
    mrr = ranked["full"].values["three"]["mrr"]
    # the first asks for its own target; the second's is behind item 3; item 5 ties
    # with items 0 and 1 behind items 3 and 4, and ties count against it
    np.testing.assert_allclose(mrr, [1, 1 / 2, 1 / 5])
    assert list(ranked) == ["full", "expected-1+99", "expected-1+99-popularity"]
    assert set(recommended) == {"three"}


def test_a_protocol_needs_two_users_and_names_its_negatives(task, ranker, caplog):
    both = Candidates(np.array([0, 1]), np.array([[3, 4, 5], [4, 3, 5]]), "both")
    one = Candidates(np.array([2]), np.array([[5, 3, 4]]), "one")
    drawn = {"1+99": both, "1+99-category": one}
    kept, recommended = comparison.rank(
        task, drawn, [ranker], ["1+99-category", "1+99"], make_mesh(1, -1, 1)
    )
    assert list(kept) == ["1+2"] and recommended == {}
    assert "1+99-category: fewer than two users have 2 candidates" in caplog.text


def test_without_a_category_there_is_no_protocol_of_the_same(task, tmp_path):
    names = ["full", "1+99", "1+99-category"]
    folder = epath.Path(tmp_path)
    drawn = comparison.draw_protocols(folder, task, names, write=True)
    assert list(drawn) == ["1+99"]
    assert [path.name for path in tmp_path.iterdir()] == ["1+99.npz"]
    again = comparison.draw_protocols(folder, task, names, write=False)
    np.testing.assert_array_equal(again["1+99"].items, drawn["1+99"].items)
    columns = {"kind": ["a", "a", "a", "b", "b", "b"]}
    with_kinds = task._replace(log=task.log._replace(columns=columns))
    drawn = comparison.draw_protocols(folder, with_kinds, names, write=True)
    assert list(drawn) == ["1+99", "1+99-category"]
    assert set(drawn["1+99-category"].items.ravel()) <= {3, 4, 5}
