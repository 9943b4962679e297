"""Who is held out, and where a user's log is cut into history and next items.

The paper (https://arxiv.org/abs/2605.06981, data section) splits a log at the last hour
before its end. We read it so: what is earlier is history, what falls into the window is
to be predicted. Training users give an example for each item of the window, held-out
users one, for their last item.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, UInt64

from blue.data.log import clean_line
from blue.data.readers.cells import read_id
from blue.data.readers.columns import find_user_column
from blue.data.readers.rows import read_rows
from blue.errors import UserError

SPLITS = ("train", "validation", "test")
WINDOW_POLICIES = ("exclude_window", "include_window", "rolling")
TIES = ("hash", "file")


class Cut(NamedTuple):
    """An example of a user: places of its targets in the log, length of its history.

    The history is the first `end` events. `more` are further targets of the same
    history, for the embedding reward alone.
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
    ties: order of a user's events of one moment: a seeded "hash", or the "file"'s.
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
    """A user's examples, newest first; `stats` counts the targets that give none.

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
    if not len(able):  # counted as a target without history
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


def tie_keys(
    seed: int, user_ids: Sequence[str], item_ids: Sequence[str]
) -> tuple[UInt64[np.ndarray, " u"], UInt64[np.ndarray, " i"]]:
    """Random-looking numbers of users and items; their sum orders a user's ties.

    Ids grow with an item's age and popularity, so that file order among events of one
    moment would tell which is the newest.
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
    """The order of events by (user, time), events of one moment by a seeded hash.

    `user` and `timestamp` are sorted already: only ties move.
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


# ------------------------------------------------------------- splits that are given


def read_splits(
    path: Path, user_ids: Sequence[str], *, separator: str, user_column: str
) -> dict[str, str]:
    """User id -> train, validation or test, from a file of any kind of `read_rows`.

    Its columns are `user_id`, or the events' name of it, and `split`. A user may stand
    in it twice, but in one split only.

    Raises:
      UserError: one line that names the file, the line and what is wrong with it.
    """
    column = find_user_column(path, user_column, separator=separator)
    known, splits, lines = set(user_ids), {}, {}
    for row in read_rows(path, [column, "split"], separator=separator):
        where = f"data.splits: {path}, line {row.line}"
        if row.reason:
            raise UserError(f"{where}: {row.reason}")
        user, split = read_id(row.values[0]), str(row.values[1] or "").strip()
        shown = repr(clean_line(user, 40))
        if split not in SPLITS:
            raise UserError(
                f"{where}: the split {clean_line(split, 40)!r} of user {shown} must be "
                f"one of {', '.join(SPLITS)}"
            )
        if user not in known:
            raise UserError(f"{where}: user {shown} is not in the log")
        if splits.setdefault(user, split) != split:
            raise UserError(
                f"{where}: user {shown} is in {split} here and in {splits[user]} in "
                f"line {lines[user]}; a user belongs to one split"
            )
        lines.setdefault(user, row.line)
    return splits


def given_users(
    user_ids: Sequence[str], users: Sequence[int], splits: Mapping[str, str]
) -> tuple[list[int], list[int], list[int]]:
    """Train, validation and test users: those of `users` whom `splits` puts there.

    Raises:
      UserError: one line, if one of the three is empty.
    """
    parts = {
        split: sorted(user for user in users if splits.get(user_ids[user]) == split)
        for split in SPLITS
    }
    for split, part in parts.items():
        if not part:
            listed = sum(name == split for name in splits.values())
            raise UserError(
                f"data.splits: no user in {split}: of the {listed} users listed none "
                "gives an example (data.min_interactions, data.max_interactions, "
                "data.window_policy)"
            )
    return parts["train"], parts["validation"], parts["test"]
