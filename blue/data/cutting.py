"""Cuts a user's log into history and targets."""

from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64


class Cut(NamedTuple):
    """An example of a user: places of its targets in the log, length of its history.

    The history is the first `end` events. `more` are further targets of the same
    history, used only by the embedding reward.
    """

    place: int
    end: int
    more: tuple[int, ...] = ()


class Cutting(NamedTuple):
    """How a log becomes examples: the settings of config.data.

    min_interactions, max_interactions: users with fewer or more events are left out.
    window_policy: where a history ends, see `cut_log`.
    window_s: seconds before the last event, for exclude_window.
    rolling_targets: targets a user, held-out ones too, spread over the log.
    embargo_items: events before a target that its history leaves out, for rolling.
    min_history: events a history has at least.
    max_train_targets: examples a training user, the newest first.
    targets_per_example: K, next items a training example: the target and up to K - 1
      more that follow the same history.
    ties: order of a user's simultaneous events: a seeded "hash", or that of the "file".
    validation_users: at most, and at most 10% of the users.
    test_users: at most, and at most 20% of the users.
    eval_negatives: items beside the target in validation and test, drawn uniformly from
      the training users' items without the user's own and the target's title.
    """

    min_interactions: int
    max_interactions: int
    window_policy: str
    window_s: int
    rolling_targets: int
    embargo_items: int
    min_history: int
    max_train_targets: int
    targets_per_example: int
    ties: str
    validation_users: int
    test_users: int
    eval_negatives: int


def cut_log(
    times: Int64[np.ndarray, " n"],
    items: Int32[np.ndarray, " n"],
    stats: Counter[str],
    cutting: Cutting,
) -> list[Cut]:
    """A user's examples, newest first; `stats` counts targets without an example.

    exclude_window: a target for each event of the last `window_s` seconds, all with the
    history before the window. include_window: the last event after all the others.
    rolling: `rolling_targets` places spread evenly over those with enough history, the
    last one among them. The history of each is strictly earlier in time, without the
    `embargo_items` events before it. No target is in its history, or twice after the
    same history. A history has at least `min_history` events.
    """
    num, policy = len(times), cutting.window_policy
    if policy == "include_window":
        cuts = [Cut(num - 1, num - 1)]
    elif policy == "exclude_window":
        end = int(np.searchsorted(times, times[-1] - cutting.window_s))
        cuts = [Cut(place, end) for place in range(num - 1, end - 1, -1)]
    else:
        assert policy == "rolling", policy
        cuts = _rolling(
            times, cutting.rolling_targets, cutting.embargo_items, cutting.min_history
        )
    kept: dict[tuple[int, int], Cut] = {}
    for cut in cuts:
        item = int(items[cut.place])
        if cut.end < cutting.min_history:
            stats["targets_without_history"] += 1
        elif item in items[: cut.end]:
            stats["targets_in_history"] += 1
        elif (item, cut.end) in kept:
            stats["targets_repeated"] += 1
        elif len(kept) < cutting.max_train_targets:
            kept[item, cut.end] = cut
        else:
            stats["targets_beyond_max_train_targets"] += 1
    first, more = num, cutting.targets_per_example - 1
    if policy == "exclude_window":
        first = cuts[0].end
    return [
        cut._replace(more=_more_places(cut, items, first, more))
        for cut in kept.values()
    ]


def _rolling(
    times: Int64[np.ndarray, " n"], targets: int, embargo: int, min_history: int
) -> list[Cut]:
    places = np.arange(len(times))
    ends = np.minimum(np.searchsorted(times, times), places - embargo)
    able = np.flatnonzero(ends >= min_history)
    if not len(able):  # counts as a target without history
        return [Cut(len(times) - 1, max(0, int(ends[-1])))]
    parts = range(targets, 0, -1)
    chosen = dict.fromkeys(-(-part * len(able) // targets) - 1 for part in parts)
    return [Cut(int(able[i]), int(ends[able[i]])) for i in chosen]


def _more_places(
    cut: Cut, items: Int32[np.ndarray, " n"], first: int, num: int
) -> tuple[int, ...]:
    """At most `num` places of further new items: after the target, the nearest first,
    then from `first` on up to it."""
    seen, places = {*items[: cut.end].tolist(), int(items[cut.place])}, []
    for place in [*range(cut.place + 1, len(items)), *range(first, cut.place)]:
        if len(places) == num:
            break
        if int(items[place]) not in seen:
            seen.add(int(items[place]))
            places.append(place)
    return tuple(places)
