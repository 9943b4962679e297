"""Rows of a split, and generators by purpose."""

import numpy as np

from blue.data.examples import history, items_of_user, rng_for
from tests.helpers.small_world import make_split


def test_generators_differ_by_every_part_of_their_key():
    keys = [
        (0, "a"),
        (1, "a"),
        (0, "b"),
        (0, "a", 0),
        (0, "a", 1),
        (0, "a", 0, 1),
        (-1, "a"),
    ]
    draws = {rng_for(*key).integers(2**60) for key in keys}
    assert len(draws) == len(keys)
    assert rng_for(0, "a", np.int64(1)).integers(2**60) in draws


def test_rows_of_ragged_fields_by_hand():
    split = make_split([[3, 1], [2]], [4, 5], [0, 1], np.zeros((2, 0)), {1: [9]})
    items, ratings = history(split, 0)
    assert items.tolist() == [3, 1] and np.isnan(ratings).all()  # oldest first
    assert history(split, 1)[0].tolist() == [2]
    assert items_of_user(split, 0).tolist() == [1, 3, 4]  # sorted, the target too
    assert items_of_user(split, 1).tolist() == [2, 5, 9]
