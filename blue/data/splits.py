"""Who is held out, and where a user's log is cut into history and next items.

The paper (https://arxiv.org/abs/2605.06981, data section) splits a log at the last hour
before its end; this is our reading of it: what is earlier is history, what falls into
the window is to be predicted. Training users give an example for each item of the
window, held-out users one, for their last item.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

WINDOW_POLICIES = ("exclude_window", "include_window", "rolling")


class Cut(NamedTuple):
    """An example of a user: the target's place in the log, and how long the history is.

    The history is the first `end` events.
    """

    place: int
    end: int


def cut_log(
    times: Int64[np.ndarray, " n"],
    items: Int32[np.ndarray, " n"],
    stats: Counter[str],
    *,
    window_policy: str,
    window_s: int,
    rolling_targets: int,
    max_train_targets: int,
) -> list[Cut]:
    """A user's examples, newest first; `stats` counts the targets that give none.

    exclude_window: a target for each event of the last `window_s` seconds, all with the
    history before the window. include_window: the last event after all the others.
    rolling: the ends of `rolling_targets` equal parts of the log, each with what is
    strictly earlier. No target is in its history, or twice after the same history.
    """
    num = len(times)
    if window_policy == "include_window":
        cuts = [Cut(num - 1, num - 1)]
    elif window_policy == "exclude_window":
        end = int(np.searchsorted(times, times[-1] - window_s))
        cuts = [Cut(place, end) for place in range(num - 1, end - 1, -1)]
    else:
        assert window_policy == "rolling", window_policy
        parts = range(rolling_targets, 0, -1)
        places = dict.fromkeys(-(-part * num // rolling_targets) - 1 for part in parts)
        cuts = [Cut(p, int(np.searchsorted(times, times[p]))) for p in places]
    kept: dict[tuple[int, int], Cut] = {}
    for cut in cuts:
        item = int(items[cut.place])
        if cut.end == 0:
            stats["targets_without_history"] += 1
        elif item in items[: cut.end]:
            stats["targets_in_history"] += 1
        elif (item, cut.end) in kept:
            stats["targets_repeated"] += 1
        elif len(kept) < max_train_targets:
            kept[item, cut.end] = cut
        else:
            stats["targets_beyond_max_train_targets"] += 1
    return list(kept.values())


def split_users(
    user_ids: Sequence[str],
    *,
    seed: int,
    users: Sequence[int],
    complete: Sequence[int],
    num_validation: int,
    num_test: int,
) -> tuple[list[int], list[int], list[int]]:
    """Train, validation and test users, disjoint; a hash of (seed, id) is the order.

    Only `complete` users, whose last event gives an example, are held out.
    """

    def place(user: int) -> bytes:
        name = json.dumps([int(seed), "split", user_ids[user]])
        return hashlib.sha256(name.encode()).digest()

    held_out = sorted(complete, key=place)[: num_test + num_validation]
    test, validation = held_out[:num_test], held_out[num_test:]
    return sorted({*users} - {*held_out}), sorted(validation), sorted(test)
