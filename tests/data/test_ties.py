"""Simultaneous events: a seeded order that no file decides."""

import numpy as np

from blue.data.ties import break_ties


def test_ties_are_broken_by_a_seeded_hash():
    users, items = ["a", "b"], [str(i) for i in range(50)]
    user = np.repeat([0, 1], 50).astype(np.int32)
    item = np.tile(np.arange(50), 2).astype(np.int32)
    time = np.tile(np.repeat([5, 6, 7], [20, 1, 29]), 2).astype(np.int64)
    order = break_ties(0, users, items, user, item, time)
    assert sorted(order) == list(range(100)) and order[20] == 20 and order[70] == 70
    assert (time[order] == time).all() and (user[order] == user).all()
    assert (order[:20] != np.arange(20)).any()
    assert (item[order][:20] != item[order][50:70]).any()  # each user's own order
    again = np.random.default_rng(0).permutation(20)  # file order does not matter
    shuffled = np.concatenate([again, np.arange(20, 100)])
    found = break_ties(0, users, items, user, item[shuffled], time)
    assert (item[shuffled][found] == item[order]).all()
    assert (break_ties(1, users, items, user, item, time) != order).any()
    # the place of the largest id among the last moment's 29 is no longer the last
    last = [
        int(item[break_ties(s, users, items, user, item, time)][49]) for s in range(40)
    ]
    assert len(set(last)) > 10


def test_without_ties_events_stay_where_they_are():
    user = np.array([0, 0, 1], np.int32)
    time = np.array([5, 6, 6], np.int64)
    order = break_ties(0, ["a", "b"], ["x", "y"], user, user, time)
    assert order.tolist() == [0, 1, 2]
