"""Examples: the history, next item and negatives of a user; batches of them.

All randomness is a function of (seed, purpose, id): nothing depends on batching or
order.
"""

import hashlib
import json
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64


class Split(NamedTuple):
    """Examples of one split; row i of a ragged field is at offsets i to i + 1."""

    user: Int32[np.ndarray, " n"]  # index into Log.user_ids
    next_item: Int32[np.ndarray, " n"]  # index into Log.item_ids, as all items here
    more_items: Int32[
        np.ndarray, "n K-1"
    ]  # further next items of the history; -1: none
    history_items: Int32[np.ndarray, " h"]  # oldest first
    history_ratings: Float32[np.ndarray, " h"]  # NaN: none given
    history_offsets: Int64[np.ndarray, " n+1"]
    own_items: Int32[np.ndarray, " o"]  # all of the user's items, sorted, distinct
    own_offsets: Int64[np.ndarray, " n+1"]
    negatives: Int32[np.ndarray, "n 99"]  # fixed candidates; none ([n, 0]) in train
    ids: Int64[np.ndarray, " n"]  # distinct over all splits


class Examples(NamedTuple):
    """All examples of a log, and the pool of negatives."""

    train: Split
    validation: Split
    test: Split
    pool: Int32[np.ndarray, " k"]  # items of training users: the eligible negatives
    title_group: Int32[np.ndarray, " I"]  # items of the same title have the same number
    item_counts: Int64[np.ndarray, " I"]  # interactions of training users
    fingerprint: str  # of the log and the settings, hexadecimal
    stats: dict[str, int]  # users, examples, and what was left out, by reason


def rng_for(seed: int, purpose: str, *ids: int | np.integer) -> np.random.Generator:
    """A generator for each (seed, purpose, ids)."""
    name = json.dumps([int(seed), purpose, *map(int, ids)])
    key = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def history(
    split: Split, i: int | np.integer
) -> tuple[Int32[np.ndarray, " h"], Float32[np.ndarray, " h"]]:
    """Items and ratings of example i's history, oldest first."""
    row = slice(split.history_offsets[i], split.history_offsets[i + 1])
    return split.history_items[row], split.history_ratings[row]


def items_of_user(split: Split, i: int | np.integer) -> Int32[np.ndarray, " o"]:
    """Every item of example i's user, in and after the history, sorted."""
    return split.own_items[split.own_offsets[i] : split.own_offsets[i + 1]]
