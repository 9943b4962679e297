"""Whom an evaluation is about, with one target a user and with several."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from blue.data.examples import history
from blue.evaluation import cohort as cohorts
from blue.evaluation import cold_start
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
