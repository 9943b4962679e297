"""Whom an evaluation is about, with one target a user and with several."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blue.data.examples import history
from blue.evaluation import cohort as cohorts
from blue.evaluation import cold_start, methods, metrics
from blue.text import queries
from blue.text.templates import TEMPLATES
from tests.helpers.small_world import make_split

TITLES = [f"item {i}" for i in range(9)]


def rolling():
    """Users 3, 5 and 8 with three, one and two targets."""
    return make_split(
        [[0], [0, 1], [0, 1, 2, 3], [4, 5], [], [6, 7, 0]],
        [1, 2, 4, 6, 6, 8],
        [3, 3, 3, 5, 8, 8],
        np.full((6, 2), 7),
    )


def test_a_limit_counts_users_and_keeps_all_their_rows():
    split = rolling()
    everyone = cohorts.choose_cohort(split, TITLES, limit=0)
    assert everyone.rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert everyone.users.tolist() == [3, 3, 3, 5, 8, 8]
    assert everyone.histories[1] == ["item 0", "item 1"]
    assert everyone.candidates[2].tolist() == [4, 7, 7]
    two = cohorts.choose_cohort(split, TITLES, limit=2)
    assert two.users.tolist() == [3, 3, 3, 5]
    assert cohorts.choose_cohort(split, TITLES, limit=99).rows.tolist() == [*range(6)]


def test_chosen_users_are_spread_evenly():
    split = make_split([[0]] * 12, [1] * 12, [*range(12)], np.zeros((12, 1)))
    few = cohorts.choose_cohort(split, TITLES, limit=4)
    assert few.rows.tolist() == [0, 3, 6, 9]
    np.testing.assert_array_equal(few.example_ids, split.ids[few.rows])


def test_newest_events_by_hand():
    split = rolling()
    cohort = cohorts.choose_cohort(split, TITLES, limit=0)
    two = cohorts.with_newest(cohort, TITLES, 2)
    assert two.rows.tolist() == [1, 2, 3, 5]
    assert two.histories == [
        [TITLES[i] for i in p] for p in ((0, 1), (2, 3), (4, 5), (7, 0))
    ]
    assert history(two.split, 2)[0].tolist() == [2, 3]
    assert two.candidates[:, 0].tolist() == [2, 4, 6, 8]
    none = cohorts.with_newest(cohort, TITLES, 0)
    assert none.rows.tolist() == [0, 1, 2, 3, 4, 5] and none.histories == [[]] * 6
    assert len(cohorts.with_newest(cohort, TITLES, 9).rows) == 0
    found = cold_start.cohorts(cohort, TITLES, (4, 0, 2))
    assert list(found) == [0, 2]  # four events: one user, too few


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.integers(0, 4), min_size=2, max_size=20), seed=st.integers(0, 99)
)
def test_partners_are_other_users(rows, seed):
    users = np.sort(np.array([0, 1, *rows]))
    partners = cohorts.partner_rows(users, seed=seed)
    assert (users[partners] != users).all()
    met = {int(u): {*users[partners[users == u]].tolist()} for u in users}
    assert all(len(others) == 1 for others in met.values())
    assert len({min(others) for others in met.values()}) == len(met)  # one cycle


def test_partner_rows_differ_where_the_partner_has_as_many():
    users = np.repeat([0, 1, 2], 3)
    partners = cohorts.partner_rows(users, seed=0)
    assert sorted(partners.tolist()) == [*range(9)]


def test_curve_by_hand():
    """The target's words are in the newest event: one event is as good as all."""
    titles = ["red", "green", "blue", "red two", "green two", "blue two"]
    split = make_split(
        [[1, 0], [2, 1], [0, 2]], [3, 4, 5], [0, 1, 2], [[4, 5], [3, 5], [3, 4]]
    )
    cohort = cohorts.choose_cohort(split, titles, limit=0)
    short = cold_start.cohorts(cohort, titles, (0, 1, 2))

    def embed(texts):
        rows = [[t.count(w) + 1e-3 for w in ("red", "green", "blue")] for t in texts]
        vectors = np.array(rows, np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    profiles = {
        k: {"base": ["red"] * 3, "blue": [" ".join(h) for h in c.histories]}
        for k, c in short.items()
    }
    points = cold_start.curve(
        short,
        profiles,
        embed=embed,
        query_format=queries.QueryFormat(TEMPLATES["short"], "", 10, len, 999),
        item_table=embed(titles),
        resamples=50,
        seed=0,
    )
    assert [p["events"] for p in points] == [0, 1, 2]
    assert all(p["users"] == p["targets"] == 3 for p in points)
    mrr = [p["methods"]["blue"]["mrr"]["mean"] for p in points]
    assert mrr == pytest.approx([1 / 3, 1.0, 0.5])  # nothing known: last of three
    assert points[1]["methods"]["base"]["mrr"]["mean"] == pytest.approx(
        metrics.mrr(np.array([1, 3, 3])).mean(), abs=0.1
    )
    pairs = [(d["a"], d["b"]) for d in points[1]["differences"]]
    assert set(pairs) <= set(methods.HEADLINES) and ("blue", "base") in pairs
