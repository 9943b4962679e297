"""A log of a few users and items, cut by hand: what tests of the evaluation share."""

import numpy as np

from blue.data.examples import Examples, Split


def make_split(histories, targets, users, negatives, others=None):
    """A split of one row a history; a user owns the histories and targets of its rows.

    `others`: user -> items it also touched.
    """
    owned = {user: {*(others or {}).get(user, ())} for user in users}
    for user, items, target in zip(users, histories, targets, strict=True):
        owned[user] |= {*items, target}
    own = [sorted(owned[user]) for user in users]
    ends = lambda lists: np.cumsum([0, *map(len, lists)], dtype=np.int64)
    flat = lambda lists: np.array([i for row in lists for i in row], np.int32)
    return Split(
        user=np.array(users, np.int32),
        next_item=np.array(targets, np.int32),
        more_items=np.zeros((len(users), 0), np.int32),
        history_items=flat(histories),
        history_ratings=np.full(sum(map(len, histories)), np.nan, np.float32),
        history_offsets=ends(histories),
        own_items=flat(own),
        own_offsets=ends(own),
        negatives=np.array(negatives, np.int32).reshape(len(users), -1),
        ids=np.arange(100, 100 + len(users), dtype=np.int64),
    )


def make_examples(test, item_counts, title_group=None):
    """Examples whose test split is `test`; the pool is every item with a count."""
    counts = np.array(item_counts, np.int64)
    groups = np.arange(len(counts)) if title_group is None else np.array(title_group)
    return Examples(
        train=test,
        validation=test,
        test=test,
        pool=np.flatnonzero(counts).astype(np.int32),
        title_group=groups.astype(np.int32),
        item_counts=counts,
        fingerprint="small",
        stats={},
    )


def random_world(num_items=60, num_rows=9, width=5, seed=0):
    """(examples, queries [2 U E], table): rows of three users, titles that repeat."""
    rng = np.random.default_rng(seed)
    rows = [rng.choice(num_items, 6, replace=False).tolist() for _ in range(num_rows)]
    test = make_split(
        [row[:5] for row in rows],
        [row[5] for row in rows],
        [i // 3 for i in range(num_rows)],
        np.zeros((num_rows, 0)),
    )
    counts = rng.integers(0, 9, num_items)
    groups = rng.integers(0, num_items // 2, num_items)
    unit = lambda x: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
    table = unit(rng.normal(size=(num_items, width)))
    table[1::4] = table[0]  # ties
    vectors = unit(rng.normal(size=(2, num_rows, width)))
    return make_examples(test, counts, groups), vectors, table
