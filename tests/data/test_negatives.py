"""Sampled negatives: what they may be, and how often."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blue.data import synthetic
from blue.data.examples import Split, items_of_user
from blue.data.negatives import sample_negatives
from tests.helpers.hand_logs import base_world, hand_log, make_log, prepare


@pytest.fixture(scope="module")
def log():
    world = dict(base_world(), users=200, items=300)
    return synthetic.make(1, synthetic.World(**world))[0]


def test_too_few_items_for_the_negatives(tmp_path):
    with pytest.raises(
        ValueError, match="eval_negatives=36: of the 35 items .* only 35"
    ):
        prepare(hand_log(), tmp_path, max_interactions=20, eval_negatives=36)


# --- negatives while training


@st.composite
def _worlds(draw):
    """A split of a few examples, a pool, title groups, and how many are wanted."""
    num_items = draw(st.integers(2, 60))
    items = st.integers(0, num_items - 1)
    pool = sorted(draw(st.sets(items, min_size=1)))
    groups = draw(st.lists(st.integers(0, 20), min_size=num_items, max_size=num_items))
    owned = [
        sorted(draw(st.sets(items, min_size=1, max_size=8)))
        for _ in range(draw(st.integers(1, 4)))
    ]
    targets = [draw(st.sampled_from(own)) for own in owned]
    offsets = np.cumsum([0, *map(len, owned)])
    split = Split(
        user=np.arange(len(owned), dtype=np.int32),
        next_item=np.array(targets, np.int32),
        more_items=np.zeros((len(targets), 0), np.int32),
        history_items=np.zeros(0, np.int32),
        history_ratings=np.zeros(0, np.float32),
        history_offsets=np.zeros(len(owned) + 1, np.int64),
        own_items=np.concatenate(owned).astype(np.int32),
        own_offsets=offsets.astype(np.int64),
        negatives=np.zeros((len(owned), 0), np.int32),
        ids=np.arange(len(owned), dtype=np.int64) + 5,
    )
    num = draw(st.integers(1, 20))
    return split, np.array(pool, np.int32), np.array(groups, np.int32), num


@settings(max_examples=40, deadline=None)
@given(_worlds(), st.integers(0, 2**40), st.integers(0, 2**40))
def test_sampled_negatives(world, seed, step):
    split, pool, group, num = world
    everyone = np.arange(len(split.user))
    items, mask = sample_negatives(
        split, everyone, pool, group, num=num, seed=seed, step=step
    )
    for i in everyone:
        target, owned = split.next_item[i], items_of_user(split, i).tolist()
        allowed = {int(j) for j in pool if j not in owned and group[j] != group[target]}
        drawn = items[i][mask[i]].tolist()
        assert len(set(drawn)) == len(drawn) == min(num, len(allowed))
        assert set(drawn) <= allowed
        alone = sample_negatives(
            split, np.array([i]), pool, group, num=num, seed=seed, step=step
        )
        np.testing.assert_array_equal(alone[0][0], items[i])
        np.testing.assert_array_equal(alone[1][0], mask[i])


@pytest.mark.parametrize("pool_size", [30, 300])  # listed, drawn
def test_negatives_are_uniform_and_new_each_step(tmp_path, pool_size):
    histories = [
        [((u * 3 + k) % pool_size, 9000 * k) for k in range(6)] for u in range(150)
    ]
    log = make_log(histories, [f"item {i}" for i in range(pool_size)])
    found = prepare(log, tmp_path, test_users=0, validation_users=0)
    assert len(found.pool) == pool_size
    steps = [
        sample_negatives(
            found.train,
            np.array([4]),
            found.pool,
            found.title_group,
            num=10,
            seed=0,
            step=step,
        )[0]
        for step in range(600)
    ]
    counts = np.bincount(np.ravel(steps), minlength=pool_size)
    owned = items_of_user(found.train, 4)
    assert counts[owned].sum() == 0
    free = np.delete(counts, owned)
    expected = 6_000 / len(free)
    assert ((free - expected) ** 2 / expected).sum() < 1.5 * len(free)  # chi-square
