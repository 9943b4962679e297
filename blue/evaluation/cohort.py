"""The users of an evaluation, with their histories and candidates."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from blue.data.examples import Split, history
from blue.inference.generate import Profile
from blue.text import queries
from blue.text.queries import PromptFormat

# prompts and example ids -> one profile each
Generate = Callable[[list[list[int]], list[int]], list[Profile]]


class Cohort(NamedTuple):
    """U rows of one evaluation: a user and one of its targets each."""

    split: Split
    rows: Int[np.ndarray, " U"]  # where they are in `split`
    users: Int[np.ndarray, " U"]  # of each row; several rows may be of one user
    example_ids: Int[np.ndarray, " U"]  # key the sampling
    histories: list[list[str]]  # titles, oldest first
    candidates: Int[np.ndarray, "U I"]  # column 0: the next item; then the negatives


def choose_cohort(split: Split, titles: list[str], *, limit: int) -> Cohort:
    """All rows of at most `limit` users, evenly spaced; of all users when it is 0."""
    users = np.unique(split.user)
    count = min(len(users), limit) if limit else len(users)
    chosen = users[np.arange(count) * len(users) // max(count, 1)]
    return _cohort(split, titles, np.flatnonzero(np.isin(split.user, chosen)))


def with_newest(cohort: Cohort, titles: list[str], num: int) -> Cohort:
    """The rows with `num` events in their history or more, cut to the newest `num`."""
    split = cohort.split
    starts, ends = split.history_offsets[:-1], split.history_offsets[1:]
    kept = np.minimum(ends - starts, num)
    places = np.concatenate(
        [np.arange(0), *(np.arange(e - k, e) for e, k in zip(ends, kept, strict=True))]
    )
    cut = split._replace(
        history_items=split.history_items[places],
        history_ratings=split.history_ratings[places],
        history_offsets=np.cumsum([0, *kept], dtype=np.int64),
    )
    return _cohort(cut, titles, cohort.rows[kept[cohort.rows] == num])


def _cohort(split: Split, titles: list[str], rows: Int[np.ndarray, " U"]) -> Cohort:
    items = [history(split, int(row))[0].tolist() for row in rows]
    return Cohort(
        split=split,
        rows=rows,
        users=split.user[rows],
        example_ids=split.ids[rows],
        histories=[[titles[i] for i in own] for own in items],
        candidates=np.concatenate(
            [split.next_item[rows, None], split.negatives[rows]], axis=1
        ),
    )


def partner_rows(users: Int[np.ndarray, " U"], *, seed: int) -> Int[np.ndarray, " U"]:
    """For every row a row of another user, the same for all rows of a user.

    With one row a user it is one random cycle through all users.
    """
    distinct, place = np.unique(users, return_inverse=True)
    partners = queries.other_users(len(distinct), seed=seed)
    rows_of = [np.flatnonzero(place == user) for user in range(len(distinct))]
    chosen = np.empty(len(users), np.int64)
    for user, partner in enumerate(partners):
        chosen[rows_of[user]] = np.resize(rows_of[partner], len(rows_of[user]))
    return chosen


def write_profiles(
    cohort: Cohort,
    generate: Generate,
    *,
    titles: list[str],
    prompt_format: PromptFormat,
) -> list[Profile]:
    """One sampled profile for each row of `cohort`, keyed by the example ids."""
    prompt_ids = queries.profile_prompts(
        prompt_format, cohort.split, cohort.rows, titles
    )
    return generate(prompt_ids, cohort.example_ids.tolist())
