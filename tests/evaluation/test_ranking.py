"""The catalogue ranked on the devices against the same in numpy."""

import numpy as np
import pytest

from blue.evaluation import protocols, ranking
from blue.runtime.sharding import make_mesh
from tests.helpers.small_world import random_world


def both(mesh, vectors, table, examples, rows, *, block=ranking.BLOCK, centre=None):
    counts = examples.item_counts
    weights = np.stack([counts > 0, protocols.popularity_weights(counts)], axis=1)
    targets = protocols.make_targets(examples.test, rows, examples.title_group)
    names = [str(n) for n in range(len(vectors))]
    ranker = protocols.by_cosine(names, vectors[:, rows], table, centre=centre)
    expected = protocols.rank_all(ranker, targets, weights)
    return expected, ranking.rank_all(ranker, targets, weights, mesh, block=block)


def check(expected, found):
    np.testing.assert_array_equal(found.ranks, expected.ranks)
    np.testing.assert_array_equal(found.tied, expected.tied)
    np.testing.assert_array_equal(found.top, expected.top)
    np.testing.assert_allclose(found.shares, expected.shares, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)])
def test_equals_numpy_over_devices_slabs_and_blocks(shape, monkeypatch):
    monkeypatch.setattr(ranking, "BLOCKS", 2)  # so that 60 items are several slabs
    monkeypatch.setattr(ranking, "QUERIES", 8)
    examples, vectors, table = random_world(seed=3)
    mesh, rows = make_mesh(*shape), np.array([0, 2, 3, 7, 8])
    check(*both(mesh, vectors, table, examples, rows, block=2))


def test_equals_numpy_where_one_slab_has_room_for_all():
    examples, vectors, table = random_world(seed=4)
    centre = table.mean(axis=0)
    mesh, rows = make_mesh(1, 8, 1), np.arange(9)
    check(*both(mesh, vectors, table, examples, rows, centre=centre))


def test_equal_vectors_and_nan_count_against_the_target():
    examples, vectors, table = random_world(seed=5)
    table, vectors = table.copy(), vectors.copy()
    table[10:40] = table[10]  # equal scores: ties, the best by number
    table[50], vectors[1, 2] = np.nan, np.nan
    expected, found = both(make_mesh(1, 8, 1), vectors, table, examples, np.arange(4))
    check(expected, found)
    assert found.tied.any() and (found.top[1, 2] < 0).all()
