"""Batches, and other users of a batch as negatives."""

import numpy as np
import pytest

from blue.data import synthetic
from blue.data.batches import batch_indices, in_batch_mask, next_items
from blue.data.examples import Split, history
from blue.data.negatives import sample_negatives
from tests.helpers.hand_logs import base_world, make_log, prepare


@pytest.fixture(scope="module")
def log():
    world = dict(base_world(), users=200, items=300)
    return synthetic.make(1, synthetic.World(**world))[0]


# --- other users as negatives


def test_in_batch_mask_by_hand(tmp_path):
    titles = ["a", "b", "c", "A", "e", "f"]  # items 0 and 3 have the same title
    users = np.array([0, 0, 1, 2, 3], np.int32)
    targets = np.array([0, 1, 3, 2, 4], np.int32)
    histories = [[5], [5], [1, 5], [4, 0], [5]]
    nothing = np.zeros(0, np.int32)
    split = Split(
        user=users,
        next_item=targets,
        more_items=np.array([[-1], [-1], [2], [-1], [-1]], np.int32),
        history_items=np.concatenate(histories).astype(np.int32),
        history_ratings=np.zeros(7, np.float32),
        history_offsets=np.array([0, 1, 2, 4, 6, 7]),
        own_items=nothing,
        own_offsets=np.zeros(6, np.int64),
        negatives=np.zeros((5, 0), np.int32),
        ids=np.arange(5),
    )
    log = make_log([[(k, 9000 * k) for k in range(6)]], titles)
    group = prepare(log, tmp_path, test_users=0).title_group
    expected = [
        # w: 0      1      2      3      4
        [False, False, False, False, True],  # 0: same user, same title, 3 had item 0
        [False, False, False, True, True],  # 1: same user, 2 had item 1
        [False, True, False, True, True],  # 2: same title as 0
        [True, True, True, False, True],  # 3: nobody had item 2
        [True, True, True, False, False],  # 4: 3 had item 4
    ]
    indices = np.arange(5)
    mask = in_batch_mask(split, indices, group)
    assert mask.shape == (5, 2, 5) and mask[:, 0].tolist() == expected
    # 2's second next item is item 2: 3 takes it next, nobody had it
    assert mask[2, 1].tolist() == [True, True, False, False, True]
    items, known = next_items(split, indices)
    assert known.tolist() == [[True, k == 2] for k in range(5)]
    assert items[:, 0].tolist() == targets.tolist() and items[2, 1] == 2
    turned = in_batch_mask(split, indices[::-1], group)
    assert turned[::-1, 0, ::-1].tolist() == expected
    twice = in_batch_mask(split, np.array([4, 4]), group)
    assert not twice.any()  # an example that comes twice is no negative of itself


def test_a_batch_of_one_target_has_no_other_users(tmp_path):
    """Everyone takes item 9 last; a user of a single event gives no example at all."""
    users = [[(k, 9000), (9, 90_000)] for k in range(8)] + [[(9, 90_000)]]
    log = make_log(users, [f"item {k}" for k in range(10)])
    made = prepare(log, tmp_path, min_interactions=2, test_users=0, eval_negatives=2)
    assert made.train.user.tolist() == list(range(8))
    indices = np.arange(8)
    assert (made.train.next_item == 9).all()
    assert [len(history(made.train, i)[0]) for i in indices] == [1] * 8
    assert not in_batch_mask(made.train, indices, made.title_group).any()
    _, known = sample_negatives(
        made.train, indices, made.pool, made.title_group, num=9, seed=0, step=0
    )
    assert (known.sum(axis=1) == 7).all()  # the others' items; the rest is masked


# --- batches


def test_batches_pass_over_all_examples_in_a_new_order_each_epoch():
    batches = [batch_indices(10, batch_size=4, seed=7, step=step) for step in range(10)]
    epochs = np.concatenate(batches).reshape(4, 10)
    assert (np.sort(epochs) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 4
    again = batch_indices(10, batch_size=4, seed=7, step=2)
    assert again.tolist() == batches[2].tolist()  # crosses from epoch 0 to 1
    again[:] = 0  # a caller may write into its batch
    assert batch_indices(10, batch_size=4, seed=7, step=2).tolist() == (
        batches[2].tolist()
    )
    other = batch_indices(10, batch_size=10, seed=8, step=0)
    assert other.tolist() != epochs[0].tolist()
    bigger = batch_indices(10, batch_size=10, seed=7, step=1)
    assert bigger.tolist() == epochs[1].tolist()  # the order knows no batches


@pytest.mark.parametrize("batch_size", [0, 11])
def test_batch_of_a_wrong_size(batch_size):
    with pytest.raises(ValueError, match=f"batch of {batch_size} .* 10"):
        batch_indices(10, batch_size=batch_size, seed=0, step=0)
