"""The log that every reader returns, and how several are joined."""

import bisect
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64

from blue.errors import UserError


class Log(NamedTuple):
    """Events sorted by (user, timestamp, file order), and the catalogue's text."""

    name: str
    user_ids: list[str]  # sorted; every user has at least one event
    item_ids: list[str]  # the whole catalogue, also items without events
    titles: list[str]  # an item's line in a history: one clean line, not empty
    texts: list[str]  # an item's text for the encoder
    user: Int32[np.ndarray, " n"]  # index into user_ids
    item: Int32[np.ndarray, " n"]  # index into item_ids
    timestamp: Int64[np.ndarray, " n"]  # seconds since 1970, UTC
    rating: Float32[np.ndarray, " n"]  # NaN: none given
    rows_read: int  # of all files, including rows left out
    rows_bad: dict[str, int]  # rows that were left out, by reason
    columns: dict[str, list[str]] = {}  # item columns by name; "" where missing

    def history(self, user_id: str) -> tuple[list[str], list[float]]:
        """Titles and ratings (NaN: none) of a user's events, oldest first.

        Raises:
          UserError: the log has no such user.
        """
        user = bisect.bisect_left(self.user_ids, user_id)
        if user == len(self.user_ids) or self.user_ids[user] != user_id:
            raise UserError(f"{self.name}: no user {user_id!r} in the log")
        own = slice(*np.searchsorted(self.user, [user, user + 1]))
        titles = [self.titles[item] for item in self.item[own].tolist()]
        return titles, self.rating[own].tolist()


def event_order(
    user: Int32[np.ndarray, " n"],
    item: Int32[np.ndarray, " n"],
    timestamp: Int64[np.ndarray, " n"],
    *,
    once: bool = False,
) -> Int64[np.ndarray, " m"]:
    """Indices by (user, time, place in the file), each event once.

    Of equal (user, item, time) the first is kept; with `once` of equal (user, item) the
    earliest.
    """
    order = np.lexsort((timestamp, user))  # stable
    same = (user, item) if once else (user, item, timestamp)
    columns = [column[order] for column in same]
    grouped = np.lexsort(columns)
    repeated = np.ones(max(len(order) - 1, 0), bool)
    for column in columns:
        repeated &= column[grouped[1:]] == column[grouped[:-1]]
    keep = np.ones(len(order), bool)
    keep[grouped[1:][repeated]] = False
    return order[keep]


def join(logs: Sequence[Log]) -> Log:
    """One log of several.

    Equal ids are the same user or item in all logs. If several describe an item, the
    first text counts. Item columns are those that all logs have.
    """
    if len(logs) == 1:
        return logs[0]
    user_ids = sorted(set().union(*(log.user_ids for log in logs)))
    users = {user_id: number for number, user_id in enumerate(user_ids)}
    items: dict[str, int] = {}
    titles, texts = [], []
    shared = set.intersection(*(set(log.columns) for log in logs))
    columns: dict[str, list[str]] = {
        name: [] for name in logs[0].columns if name in shared
    }
    parts = []
    for log in logs:
        for i, item_id in enumerate(log.item_ids):
            if items.setdefault(item_id, len(items)) == len(titles):  # it is new
                titles.append(log.titles[i])
                texts.append(log.texts[i])
                for name, values in columns.items():
                    values.append(log.columns[name][i])
        user = np.array([users[user_id] for user_id in log.user_ids], np.int32)
        item = np.array([items[item_id] for item_id in log.item_ids], np.int32)
        parts.append((user[log.user], item[log.item], log.timestamp, log.rating))
    user, item, timestamp, rating = map(np.concatenate, zip(*parts, strict=True))
    order = event_order(user, item, timestamp)
    rows_bad = Counter()
    for log in logs:
        rows_bad.update(log.rows_bad)
    if len(order) < len(user):
        rows_bad["join: duplicate (user, item, time)"] = len(user) - len(order)
    return Log(
        name="+".join(log.name for log in logs),
        user_ids=user_ids,
        item_ids=list(items),
        titles=titles,
        texts=texts,
        user=user[order],
        item=item[order],
        timestamp=timestamp[order],
        rating=rating[order],
        rows_read=sum(log.rows_read for log in logs),
        rows_bad=dict(rows_bad),
        columns=columns,
    )
