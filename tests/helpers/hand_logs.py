"""Logs by hand and a small made-up one, prepared."""

import numpy as np

from blue.data import prepare as prepare_module
from blue.data.cutting import Cutting
from blue.data.examples import Split
from blue.data.log import Log

SETTINGS = dict(
    seed=0,
    min_interactions=4,
    max_interactions=1000,
    window_policy="exclude_window",
    window_s=3600,
    rolling_targets=3,
    embargo_items=0,
    min_history=1,
    max_train_targets=16,
    targets_per_example=1,
    ties="hash",
    validation_users=1000,
    test_users=1000,
    eval_negatives=5,
)


def make_log(histories, titles):
    """A log from [(item, time), ...] for each user."""
    events = [(u, i, t) for u, events in enumerate(histories) for i, t in events]
    user, item, time = np.array(events).T
    return Log(
        name="hand",
        user_ids=[f"u{u:04d}" for u in range(len(histories))],
        item_ids=[str(i) for i in range(len(titles))],
        titles=list(titles),
        texts=list(titles),
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        timestamp=time.astype(np.int64),
        rating=(item % 5 + 1).astype(np.float32),
        rows_read=len(events),
        rows_bad={},
    )


def base_world():
    return dict(
        users=200,
        items=300,
        topics=6,
        noise=0.4,
        loyalty=0.7,
        drift=0.5,
        burst=0.3,
        min_history=8,
        max_history=20,
    )


def prepare(log, directory, **changes):
    fields = SETTINGS | changes
    cutting = Cutting(*(fields.pop(name) for name in Cutting._fields))
    return prepare_module.prepare(log, cutting, directory=directory, **fields)


# --- a log by hand


def hand_log():
    """Ten users with three old events and two in the last hour, items 10u to 10u+4."""
    histories = [
        [(10 * u + k, t) for k, t in enumerate([1, 2, 3, 90_000, 90_100])]
        for u in range(10)
    ]
    histories.append([(0, 1), (1, 2), (2, 99_999)])  # too short
    histories.append([(k, 100 * k) for k in range(30)])  # too long
    histories.append([(0, 1), (1, 1), (2, 2), (3, 3)])  # all in one hour
    return make_log(histories, [f"item {i}" for i in range(100)])


# --- the cache


def files(directory):
    return {p.name: p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def assert_equal(one, two):
    for a, b in zip(one, two, strict=True):
        if isinstance(a, Split):
            assert_equal(a, b)
        else:
            np.testing.assert_array_equal(a, b)
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None)
