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
from blue.data.examples import Examples, Split, rng_for
from blue.data.log import Log, clean_line
from blue.data.negatives import check_candidates, draw_negatives
from blue.data.splits import (
    TIES,
    WINDOW_POLICIES,
    Cut,
    break_ties,
    cut_log,
    given_users,
    split_users,
)
from blue.errors import UserError

logger = logging.getLogger("blue")

_SPLITS = ("train", "validation", "test")
_SHARED = ("pool", "title_group", "item_counts")
_FORMAT = 2  # counts up when the same log and settings come to give other examples


def prepare(
    log: Log,
    *,
    directory: str | os.PathLike,
    seed: int,
    min_interactions: int,
    max_interactions: int,
    window_policy: str,
    window_s: int,
    rolling_targets: int,
    embargo_items: int,
    min_history: int,
    max_train_targets: int,
    targets_per_example: int,
    ties: str,
    validation_users: int,
    test_users: int,
    eval_negatives: int,
    splits: Mapping[str, str] | None = None,
) -> Examples:
    """The examples of a log, from `directory`/<fingerprint> if they are there already.

    A history is what lies before the window (exclude_window), before the last event
    (include_window), or strictly earlier than the target (rolling). A target that is
    also in its history gives no example.

    Args:
      min_interactions, max_interactions: users with fewer or more events are left out.
      window_s: seconds before the last event, for exclude_window.
      rolling_targets: targets a user, held-out ones too, spread over the log, for
        rolling.
      embargo_items: events before a target that its history leaves out, for rolling.
      min_history: events a history has at least.
      max_train_targets: examples a training user, the newest first.
      targets_per_example: K, next items a training example: the target and up to K - 1
        more that follow the same history.
      ties: order of a user's events of one moment: a seeded "hash", or the "file"'s.
      validation_users: at most, and at most 10% of the users.
      test_users: at most, and at most 20% of the users.
      eval_negatives: items beside the target in validation and test, drawn uniformly
        from the training users' items without the user's own and the target's title.
      splits: user id -> train, validation or test; users it does not name are left out.
        None: a hash of the id decides.

    Raises:
      UserError: one line: a setting out of range, no user with a history, or too few
        items for the negatives.
    """
    settings: dict[str, Any] = dict(
        seed=int(seed),
        min_interactions=min_interactions,
        max_interactions=max_interactions,
        window_policy=window_policy,
        window_s=window_s,
        rolling_targets=rolling_targets,
        embargo_items=embargo_items,
        min_history=min_history,
        max_train_targets=max_train_targets,
        targets_per_example=targets_per_example,
        ties=ties,
        validation_users=validation_users,
        test_users=test_users,
        eval_negatives=eval_negatives,
    )
    _check_settings(settings)
    if splits is not None:
        named = json.dumps(sorted(splits.items())).encode()
        settings["splits"] = hashlib.sha256(named).hexdigest()
    fingerprint = _fingerprint(log, settings)
    cache = Path(directory) / fingerprint
    examples = _read(cache, fingerprint)
    if examples is None:
        build: dict[str, Any] = settings | {"splits": splits}
        examples = _build(log, fingerprint, **build)
        _write(cache, examples, {"dataset": log.name, "settings": settings})
    logger.info("%s: %s", log.name, examples.stats)
    return examples


def _check_settings(settings: Mapping[str, Any]) -> None:
    assert settings["window_policy"] in WINDOW_POLICIES and settings["ties"] in TIES
    zero = ("window_s", "embargo_items", "validation_users", "test_users")
    one = ("rolling_targets", "min_history", "max_train_targets", "eval_negatives")
    least = dict.fromkeys(zero, 0) | dict.fromkeys((*one, "targets_per_example"), 1)
    for name, bound in (least | {"min_interactions": 2}).items():
        if settings[name] < bound:
            raise UserError(f"data.{name}={settings[name]} must be {bound} or more")
    if settings["max_interactions"] < settings["min_interactions"]:
        raise UserError(
            f"data.max_interactions={settings['max_interactions']} must not be below "
            f"data.min_interactions={settings['min_interactions']}"
        )


def _build(
    log: Log,
    fingerprint: str,
    *,
    seed: int,
    min_interactions: int,
    max_interactions: int,
    ties: str,
    validation_users: int,
    test_users: int,
    eval_negatives: int,
    splits: Mapping[str, str] | None,
    **cutting: Any,
) -> Examples:
    if ties == "hash":
        ids, events = (log.user_ids, log.item_ids), (log.user, log.item, log.timestamp)
        order = break_ties(seed, *ids, *events)
        log = log._replace(item=log.item[order], rating=log.rating[order])
    bounds = np.searchsorted(log.user, np.arange(len(log.user_ids) + 1))
    cuts, stats = _cut_logs(log, bounds, min_interactions, max_interactions, cutting)
    if splits is not None:
        train, validation, test = given_users(log.user_ids, list(cuts), splits)
        stats["users_without_split"] = len(log.user_ids) - len(splits)
    else:
        places = {user: cuts[user][0].place for user in cuts}
        train, validation, test = split_users(
            log.user_ids,
            seed=seed,
            users=list(cuts),
            complete=[u for u in cuts if bounds[u] + places[u] == bounds[u + 1] - 1],
            num_validation=min(validation_users, len(cuts) // 10),
            num_test=min(test_users, len(cuts) // 5),
        )
    of_train = np.isin(log.user, train)
    item_counts = np.bincount(log.item[of_train], minlength=len(log.item_ids))
    pool = np.flatnonzero(item_counts).astype(np.int32)
    title_group = _title_groups(log.titles)
    held_out = slice(None) if cutting["window_policy"] == "rolling" else slice(1)
    chosen = {
        "train": [(user, cut) for user in train for cut in cuts[user]],
        "validation": [
            (user, cut) for user in validation for cut in cuts[user][held_out]
        ],
        "test": [(user, cut) for user in test for cut in cuts[user][held_out]],
    }
    splits, first_id = {}, 0
    for name in _SPLITS:
        more = cutting["targets_per_example"] - 1
        split = _make_split(log, bounds, chosen[name], first_id, more)
        if name != "train":
            candidates = _eval_negatives(seed, split, pool, title_group, eval_negatives)
            split = split._replace(negatives=candidates)
        splits[name] = split
        first_id += len(chosen[name])
        stats[f"users_{name}"] = len({user for user, _ in chosen[name]})
        stats[f"examples_{name}"] = len(chosen[name])
    check_candidates([splits["validation"], splits["test"]], len(pool), eval_negatives)
    return Examples(
        **splits,
        pool=pool,
        title_group=title_group,
        item_counts=item_counts.astype(np.int64),
        fingerprint=fingerprint,
        stats=dict(stats),
    )


def _cut_logs(
    log: Log,
    bounds: Int[np.ndarray, " u"],
    shortest: int,
    longest: int,
    cutting: Mapping[str, Any],
) -> tuple[dict[int, list[Cut]], Counter[str]]:
    """Examples of each user that gives one, newest first, and what gave none."""
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
        found = cut_log(log.timestamp[events], log.item[events], stats, **cutting)
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
            f"data.window_policy={cutting['window_policy']!r}; users that each policy "
            f"keeps: {', '.join(f'{policy} {n}' for policy, n in kept.items())}"
        )
    return cuts, stats


def _count_users(
    log: Log,
    bounds: Int[np.ndarray, " u"],
    chosen: Bool[np.ndarray, " U"],
    cutting: Mapping[str, Any],
    policy: str,
) -> int:
    """How many of the `chosen` users give an example under the window policy."""
    cutting, count = {**cutting, "window_policy": policy}, 0
    for user in np.flatnonzero(chosen):
        events = slice(bounds[user], bounds[user + 1])
        times, items = log.timestamp[events], log.item[events]
        count += bool(cut_log(times, items, Counter(), **cutting))
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
