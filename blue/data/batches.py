"""Which examples a step takes, with their next items and in-batch negatives."""

import functools

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64

from blue.data.examples import Split, history, rng_for
from blue.errors import UserError


def batch_indices(
    num_examples: int, *, batch_size: int, seed: int, step: int
) -> Int64[np.ndarray, " B"]:
    """The examples of one step; each epoch has its own order, computed without state.

    A batch may end one epoch and begin the next.
    """
    if not 1 <= batch_size <= num_examples:
        raise UserError(
            f"a batch of {batch_size} examples must be 1 to {num_examples}, as many as "
            "there are"
        )
    position = step * batch_size + np.arange(batch_size)
    epochs = position // num_examples
    indices = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        now = epochs == epoch
        order = _epoch_order(num_examples, seed, int(epoch))
        indices[now] = order[position[now] % num_examples]
    return indices


@functools.lru_cache(maxsize=4)  # consecutive steps use the same orders
def _epoch_order(num_examples: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    order = rng_for(seed, "epoch", epoch).permutation(num_examples)
    order.setflags(write=False)
    return order


def next_items(
    split: Split, indices: Int[np.ndarray, " B"]
) -> tuple[Int32[np.ndarray, "B K"], Bool[np.ndarray, "B K"]]:
    """All next items of each example, the target first, and which of them count."""
    items = np.concatenate(
        [split.next_item[indices, None], split.more_items[indices]], axis=1
    )
    return np.maximum(items, 0), items >= 0


def in_batch_mask(
    split: Split, indices: Int[np.ndarray, " B"], title_group: Int32[np.ndarray, " I"]
) -> Bool[np.ndarray, "B K B"]:
    """True at [u, k, w] where user w may be compared with user u's next item k.

    w is another user, has another target and title, and lacks that item in the history.
    """
    users, (items, _) = split.user[indices], next_items(split, indices)
    theirs = title_group[split.next_item[indices]]
    had = [np.isin(items, history(split, i)[0]) for i in indices]
    same_item = title_group[items][:, :, None] == theirs
    same_user = (users[:, None] == users)[:, None]
    return ~(same_user | same_item | np.stack(had, axis=2))
