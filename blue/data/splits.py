"""Splits users into train, validation and test.

The paper (https://arxiv.org/abs/2605.06981, data section) splits a log at the last hour
before its end. We read it as follows. Earlier events are history; those in the window
are targets. Training users give an example for each item of the window; held-out users
give one, for their last item.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from blue.data.clean import clean_line
from blue.data.readers.cells import read_id
from blue.data.readers.columns import find_user_column
from blue.data.readers.rows import read_rows
from blue.errors import UserError

SPLITS = ("train", "validation", "test")
WINDOW_POLICIES = ("exclude_window", "include_window", "rolling")
TIES = ("hash", "file")


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

    Its columns are `user_id`, or the events' name for it, and `split`. A user may be
    repeated, but only in one split.

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
    """Train, validation and test users: those of `users` that `splits` assigns.

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
