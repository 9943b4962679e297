"""Logs -> examples: cut, split, with stored negatives; made once and reused."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64

from blue.data.cache import read_arrays, write_arrays
from blue.data.clean import clean_line
from blue.data.cutting import Cut, Cutting, cut_log
from blue.data.examples import Examples, Split, rng_for
from blue.data.log import Log
from blue.data.negatives import check_candidates, draw_negatives
from blue.data.splits import TIES, WINDOW_POLICIES, given_users, split_users
from blue.data.ties import break_ties
from blue.errors import UserError

logger = logging.getLogger("blue")

_SPLITS = ("train", "validation", "test")
_SHARED = ("pool", "title_group", "item_counts")
_FORMAT = 2  # increased when equal logs and settings give other examples


def prepare(
    log: Log,
    cutting: Cutting,
    *,
    directory: str | os.PathLike,
    seed: int,
    splits: Mapping[str, str] | None = None,
) -> Examples:
    """The examples of a log, read from `directory`/<fingerprint> if they exist.

    A history is everything before the window (exclude_window), before the last event
    (include_window), or strictly earlier than the target (rolling). A target that is
    also in its history gives no example.

    Args:
      seed: of ties, of the split of users and of the negatives.
      splits: user id -> train, validation or test; users it does not name are left out.
        None: a hash of the id decides.

    Raises:
      UserError: one line: a setting out of range, no user with a history, or too few
        items for the negatives.
    """
    _check(cutting)
    # Order and names are hashed: changing them would orphan examples on disk.
    settings: dict[str, Any] = {"seed": int(seed)} | cutting._asdict()
    if splits is not None:
        named = json.dumps(sorted(splits.items())).encode()
        settings["splits"] = hashlib.sha256(named).hexdigest()
    fingerprint = _fingerprint(log, settings)
    cache = Path(directory) / fingerprint
    examples = _read(cache, fingerprint)
    if examples is None:
        examples = _build(log, cutting, fingerprint, seed=int(seed), splits=splits)
        _write(cache, examples, {"dataset": log.name, "settings": settings})
    logger.info("%s: %s", log.name, examples.stats)
    return examples


def _check(cutting: Cutting) -> None:
    assert cutting.window_policy in WINDOW_POLICIES and cutting.ties in TIES
    settings = cutting._asdict()
    zero = ("window_s", "embargo_items", "validation_users", "test_users")
    one = ("rolling_targets", "min_history", "max_train_targets", "eval_negatives")
    least = dict.fromkeys(zero, 0) | dict.fromkeys((*one, "targets_per_example"), 1)
    for name, bound in (least | {"min_interactions": 2}).items():
        if settings[name] < bound:
            raise UserError(f"data.{name}={settings[name]} must be {bound} or more")
    if cutting.max_interactions < cutting.min_interactions:
        raise UserError(
            f"data.max_interactions={cutting.max_interactions} must not be below "
            f"data.min_interactions={cutting.min_interactions}"
        )


def _build(
    log: Log,
    cutting: Cutting,
    fingerprint: str,
    *,
    seed: int,
    splits: Mapping[str, str] | None,
) -> Examples:
    if cutting.ties == "hash":
        ids, events = (log.user_ids, log.item_ids), (log.user, log.item, log.timestamp)
        order = break_ties(seed, *ids, *events)
        log = log._replace(item=log.item[order], rating=log.rating[order])
    bounds = np.searchsorted(log.user, np.arange(len(log.user_ids) + 1))
    cuts, stats = _cut_logs(log, bounds, cutting)
    users = _split_users(log, bounds, cuts, cutting, seed=seed, splits=splits)
    if splits is not None:
        stats["users_without_split"] = len(log.user_ids) - len(splits)
    of_train = np.isin(log.user, users["train"])
    item_counts = np.bincount(log.item[of_train], minlength=len(log.item_ids))
    pool = np.flatnonzero(item_counts).astype(np.int32)
    title_group = _title_groups(log.titles)
    made, first_id = {}, 0
    for name in _SPLITS:
        every = name == "train" or cutting.window_policy == "rolling"
        kept = slice(None) if every else slice(1)
        chosen = [(user, cut) for user in users[name] for cut in cuts[user][kept]]
        more = cutting.targets_per_example - 1
        split = _make_split(log, bounds, chosen, first_id, more)
        if name != "train":
            drawn = _eval_negatives(
                seed, split, pool, title_group, cutting.eval_negatives
            )
            split = split._replace(negatives=drawn)
        made[name] = split
        first_id += len(chosen)
        stats[f"users_{name}"] = len({user for user, _ in chosen})
        stats[f"examples_{name}"] = len(chosen)
    held_out = [made["validation"], made["test"]]
    check_candidates(held_out, len(pool), cutting.eval_negatives)
    return Examples(
        **made,
        pool=pool,
        title_group=title_group,
        item_counts=item_counts.astype(np.int64),
        fingerprint=fingerprint,
        stats=dict(stats),
    )


def _split_users(
    log: Log,
    bounds: Int[np.ndarray, " u"],
    cuts: Mapping[int, list[Cut]],
    cutting: Cutting,
    *,
    seed: int,
    splits: Mapping[str, str] | None,
) -> dict[str, Any]:
    """The users of each split."""
    if splits is not None:
        return dict(
            zip(_SPLITS, given_users(log.user_ids, list(cuts), splits), strict=True)
        )
    last = {user: bounds[user] + cuts[user][0].place for user in cuts}
    found = split_users(
        log.user_ids,
        seed=seed,
        users=list(cuts),
        complete=[user for user in cuts if last[user] == bounds[user + 1] - 1],
        num_validation=min(cutting.validation_users, len(cuts) // 10),
        num_test=min(cutting.test_users, len(cuts) // 5),
    )
    return dict(zip(_SPLITS, found, strict=True))


def _cut_logs(
    log: Log,
    bounds: Int[np.ndarray, " u"],
    cutting: Cutting,
) -> tuple[dict[int, list[Cut]], Counter[str]]:
    """Examples of each user that has one, newest first; counts of targets without."""
    shortest, longest = cutting.min_interactions, cutting.max_interactions
    lengths = np.diff(bounds)
    in_range = (shortest <= lengths) & (lengths <= longest)
    stats: Counter[str] = Counter(
        users=len(lengths),
        users_too_short=int((lengths < shortest).sum()),
        users_too_long=int((lengths > longest).sum()),
    )
    cuts: dict[int, list[Cut]] = {}
    for user in map(int, np.flatnonzero(in_range)):
        events = slice(bounds[user], bounds[user + 1])
        found = cut_log(log.timestamp[events], log.item[events], stats, cutting)
        if found:
            cuts[user] = found
    stats["users_without_example"] = int(in_range.sum()) - len(cuts)
    if not cuts:
        kept = {
            policy: _count_users(log, bounds, in_range, cutting, policy)
            for policy in WINDOW_POLICIES
        }
        raise UserError(
            f"{log.name}: none of {len(lengths)} users gives an example: "
            f"{stats['users_too_short']} have fewer than "
            f"data.min_interactions={shortest} events (the longest log has "
            f"{lengths.max()}), {stats['users_too_long']} more than "
            f"data.max_interactions={longest}, and "
            f"{stats['users_without_example']} no history before a new item under "
            f"data.window_policy={cutting.window_policy!r}; users that each policy "
            f"keeps: {', '.join(f'{policy} {n}' for policy, n in kept.items())}"
        )
    return cuts, stats


def _count_users(
    log: Log,
    bounds: Int[np.ndarray, " u"],
    chosen: Bool[np.ndarray, " U"],
    cutting: Cutting,
    policy: str,
) -> int:
    """How many of the `chosen` users give an example under the window policy."""
    cutting, count = cutting._replace(window_policy=policy), 0
    for user in np.flatnonzero(chosen):
        events = slice(bounds[user], bounds[user + 1])
        times, items = log.timestamp[events], log.item[events]
        count += bool(cut_log(times, items, Counter(), cutting))
    return count


def _make_split(
    log: Log,
    bounds: Int64[np.ndarray, " u"],
    chosen: list[tuple[int, Cut]],
    first_id: int,
    more: int,
) -> Split:
    items, ratings, owned = [], [], []
    more_items = np.full((len(chosen), more), -1, np.int32)
    for row, (user, cut) in enumerate(chosen):
        start = bounds[user]
        for column, place in enumerate(cut.more[:more]):
            more_items[row, column] = log.item[start + place]
        items.append(log.item[start : start + cut.end])
        ratings.append(log.rating[start : start + cut.end])
        owned.append(np.unique(log.item[start : bounds[user + 1]]))
    targets = [log.item[bounds[user] + cut.place] for user, cut in chosen]
    return Split(
        user=np.array([user for user, _ in chosen], np.int32),
        next_item=np.array(targets, np.int32),
        more_items=more_items,
        history_items=_join(items, np.int32),
        history_ratings=_join(ratings, np.float32),
        history_offsets=_offsets(items),
        own_items=_join(owned, np.int32),
        own_offsets=_offsets(owned),
        negatives=np.zeros((len(chosen), 0), np.int32),
        ids=np.arange(first_id, first_id + len(chosen), dtype=np.int64),
    )


def _join(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *parts])


def _offsets(parts: list[np.ndarray]) -> Int64[np.ndarray, " o"]:
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)


def _title_groups(titles: Sequence[str]) -> Int32[np.ndarray, " I"]:
    groups: dict[str, int] = {}
    names = (clean_line(title).casefold() for title in titles)
    return np.array([groups.setdefault(n, len(groups)) for n in names], np.int32)


def _eval_negatives(
    seed: int,
    split: Split,
    pool: Int32[np.ndarray, " k"],
    title_group: Int32[np.ndarray, " I"],
    num: int,
) -> Int32[np.ndarray, "n num"]:
    """`num` candidates a row; -1 where there are not as many."""
    negatives = np.full((len(split.user), num), -1, np.int32)
    for i, user in enumerate(split.user):
        target = split.next_item[i]  # a user may have several
        rng = rng_for(seed, "evaluation negatives", user, target)
        drawn = draw_negatives(rng, split, i, pool, title_group, num)
        negatives[i, : len(drawn)] = drawn
    return negatives


# --------------------------------------------------------------------- the cache


def _fingerprint(log: Log, settings: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([_FORMAT, log.name, settings]).encode())
    for texts in (log.user_ids, log.item_ids, log.titles, log.texts):
        digest.update(f"{len(texts)} texts".encode())
        for text in texts:
            digest.update(f"{len(text)} {text}".encode("utf-8", "surrogatepass"))
    for array in (log.user, log.item, log.timestamp, log.rating):
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _read(directory: Path, fingerprint: str) -> Examples | None:
    found = read_arrays(directory)
    if found is None:
        return None
    arrays, notes = found
    train, validation, test = (
        Split(**{field: arrays[f"{name}_{field}"] for field in Split._fields})
        for name in _SPLITS
    )
    pool, title_group, item_counts = (arrays[name] for name in _SHARED)
    return Examples(
        train,
        validation,
        test,
        pool,
        title_group,
        item_counts,
        fingerprint=fingerprint,
        stats=notes["stats"],
    )


def _write(directory: Path, examples: Examples, notes: Mapping[str, Any]) -> None:
    arrays = {name: getattr(examples, name) for name in _SHARED}
    for name in _SPLITS:
        split = getattr(examples, name)
        arrays |= {f"{name}_{field}": value for field, value in split._asdict().items()}
    write_arrays(directory, arrays, {**notes, "stats": examples.stats})
