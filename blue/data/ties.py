"""The order of simultaneous events."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, Int64, UInt64


def tie_keys(
    seed: int, user_ids: Sequence[str], item_ids: Sequence[str]
) -> tuple[UInt64[np.ndarray, " u"], UInt64[np.ndarray, " i"]]:
    """Random-looking numbers of users and items; their sum orders a user's ties.

    Ids depend on an item's age and popularity, so file order among simultaneous events
    would reveal the newest item.
    """
    salt = json.dumps([int(seed), "ties"]).encode()

    def keys(ids: Sequence[str]) -> UInt64[np.ndarray, " n"]:
        digests = (
            hashlib.blake2b(name.encode(), digest_size=8, key=salt).digest()
            for name in ids
        )
        return np.frombuffer(b"".join(digests), np.uint64)

    return keys(user_ids), keys(item_ids)


def break_ties(
    seed: int,
    user_ids: Sequence[str],
    item_ids: Sequence[str],
    user: Int32[np.ndarray, " n"],
    item: Int32[np.ndarray, " n"],
    timestamp: Int64[np.ndarray, " n"],
) -> Int64[np.ndarray, " n"]:
    """The order of events by (user, time), simultaneous ones by a seeded hash.

    `user` and `timestamp` are sorted: only ties move.
    """
    order = np.arange(len(user))
    same = (user[1:] == user[:-1]) & (timestamp[1:] == timestamp[:-1])
    if not same.any():
        return order
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    of_user, of_item = tie_keys(seed, user_ids, item_ids)
    key = of_user[user[tied]] + of_item[item[tied]]
    order[tied] = tied[np.lexsort((tied, key, timestamp[tied], user[tied]))]
    return order
