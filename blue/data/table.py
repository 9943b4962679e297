"""Reader of a log that a user brings: a file of events and a file of items.

Any column names, item texts from templates. A broken row is counted under the name of
what is wrong with it and skipped; its text is never shown.
"""

import ast
import json
import math
import re
import string
import time
from array import array
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64

from blue.data.columns import check_times, find_columns
from blue.data.log import Log, clean_line
from blue.data.rows import read_rows
from blue.errors import UserError

_MAX_TEXT = 2000  # characters of an item's text; a title has clean_line's default
_MAX_LIST = 10_000  # characters of a cell that is still read as a list
_MAX_BAD = 100  # broken rows a file may always have
_FUTURE_S = 86400  # clocks and time zones differ: this far ahead is not the future yet


def read(
    path: str,
    *,
    events: str,
    items: str,
    separator: str,
    columns: Mapping[str, str],
    title_template: str,
    item_template: str,
    max_bad_fraction: float,
) -> Log:
    """The log in the files `events` and `items` of the folder `path`.

    Args:
      separator: of columns in text files, one or more characters; empty: `,`, tab, `;`
        or `|`, whichever the first line has most.
      columns: the names of user_id, item_id, timestamp and rating (empty: no ratings)
        in the events and of items_item_id in the items. Numbers, from 1, mean that the
        text file has no header. Times are seconds or milliseconds since 1970 or ISO
        text; without a time zone, UTC. An empty rating cell is a missing rating (NaN).
      title_template: a history line, such as "{title} ({year})", from columns of the
        items. Lists are joined by commas, a missing value leaves no stray punctuation.
      item_template: likewise, what the encoder and the options read.
      max_bad_fraction: of a file's rows that may be broken (100 always may).

    Raises:
      UserError: one line that names the file and what is wrong with it.
    """
    folder, separator = Path(path), separator.replace("\\t", "\t")
    if any(character in '"\r\n' for character in separator):
        raise UserError(f"data.separator={separator!r} cannot separate columns")
    columns, templates = find_columns(
        folder / events,
        folder / items,
        separator=separator,
        columns=columns,
        templates={
            "data.title_template": title_template,
            "data.item_template": item_template,
        },
    )
    title_template, item_template = templates.values()
    check_times(
        folder / events,
        columns["timestamp"],
        _seconds,
        separator=separator,
        max_bad_fraction=max_bad_fraction,
    )
    item_ids, titles, texts, bad_items = _read_items(
        folder / items,
        separator,
        columns["items_item_id"],
        title_template,
        item_template,
    )
    bad_items.check(max_bad_fraction)
    numbers = {item_id: number for number, item_id in enumerate(item_ids)}
    table, bad_events = _read_events(folder / events, separator, columns, numbers)
    order = _time_order(table, bad_events)
    bad_events.check(max_bad_fraction)
    if not len(order):
        raise UserError(
            f"{folder / events}: no usable row ({str(bad_events) or 'empty'})"
        )
    return Log(
        name=folder.resolve().name,
        user_ids=table.user_ids,
        item_ids=item_ids,
        titles=titles,
        texts=texts,
        user=table.user[order],
        item=table.item[order],
        timestamp=table.timestamp[order],
        rating=table.rating[order],
        rows_read=bad_items.rows + bad_events.rows,
        rows_bad=bad_items.named("items") | bad_events.named("events"),
    )


# ------------------------------------------------------------------ events and items


class _BadRows:
    """Broken rows of one file: how many, why, and the first line of each kind."""

    def __init__(self, path: Path):
        self.path = path
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self.first: dict[str, int] = {}

    def add(self, reason: str, line: int, count: int = 1) -> None:
        self.counts[reason] += count
        self.first[reason] = min(line, self.first.get(reason, line))

    def named(self, file: str) -> dict[str, int]:
        return {
            f"{file}: {reason}": self.counts[reason] for reason in sorted(self.counts)
        }

    def __str__(self) -> str:
        kinds = sorted(self.counts.items(), key=lambda kind: (-kind[1], kind[0]))
        return ", ".join(f"{n} {kind}, line {self.first[kind]}" for kind, n in kinds)

    def check(self, max_bad_fraction: float) -> None:
        bad, allowed = self.counts.total(), int(max_bad_fraction * self.rows)
        if bad > max(_MAX_BAD, allowed):
            raise UserError(
                f"{self.path}: {bad} of {self.rows} rows are broken, more than "
                f"{_MAX_BAD} and than data.max_bad_fraction={max_bad_fraction} of them "
                f"(how many, why, where first: {self})"
            )


class _Table(NamedTuple):
    """The usable events in file order."""

    user_ids: list[str]  # sorted
    user: Int32[np.ndarray, " n"]
    item: Int32[np.ndarray, " n"]
    timestamp: Int64[np.ndarray, " n"]
    rating: Float32[np.ndarray, " n"]
    line: Int64[np.ndarray, " n"]


def _read_items(
    path: Path, separator: str, id_column: str, title_template: str, item_template: str
) -> tuple[list[str], list[str], list[str], _BadRows]:
    title_pieces = _parse_template("data.title_template", title_template)
    text_pieces = _parse_template("data.item_template", item_template)
    fields = [field for _, field in title_pieces + text_pieces if field]
    wanted = list(dict.fromkeys([id_column, *fields]))
    ids: dict[str, None] = {}
    titles, texts, bad = [], [], _BadRows(path)
    for row in read_rows(path, wanted, separator=separator):
        bad.rows += row.lines
        cells = dict(zip(wanted, row.values, strict=False))
        reason = row.reason or _bad_id(item_id := _id(cells[id_column]))
        if not reason and item_id in ids:
            reason = "duplicate item"
        if not reason:
            title = clean_line(_fill(title_pieces, cells))
            text = clean_line(_fill(text_pieces, cells), _MAX_TEXT)
            reason = "" if title and text else "empty text" if title else "empty title"
        if reason:
            bad.add(reason, row.line, row.lines)
            continue
        ids[item_id] = None
        titles.append(title)
        texts.append(text)
    return list(ids), titles, texts, bad


def _read_events(
    path: Path, separator: str, columns: Mapping[str, str], items: Mapping[str, int]
) -> tuple[_Table, _BadRows]:
    wanted = [columns["user_id"], columns["item_id"], columns["timestamp"]]
    if columns["rating"]:
        wanted.append(columns["rating"])
    users: dict[str, int] = {}
    user, item, timestamp = array("i"), array("i"), array("q")
    rating, line = array("f"), array("q")
    bad, latest = _BadRows(path), time.time() + _FUTURE_S
    for row in read_rows(path, wanted, separator=separator):
        bad.rows += row.lines
        event = row.reason or _event(row.values, items, latest)
        if isinstance(event, str):
            bad.add(event, row.line, row.lines)
            continue
        user.append(users.setdefault(event[0], len(users)))
        item.append(event[1])
        timestamp.append(event[2])
        rating.append(event[3])
        line.append(row.line)
    user_ids = sorted(users)
    rank = np.empty(len(users), np.int32)  # of users numbered as they appeared
    rank[[users[user_id] for user_id in user_ids]] = np.arange(len(users))
    table = _Table(
        user_ids,
        rank[np.asarray(user)],
        np.asarray(item),
        np.asarray(timestamp),
        np.asarray(rating),
        np.asarray(line),
    )
    return table, bad


def _event(
    values: list, items: Mapping[str, int], latest: float
) -> tuple[str, int, int, float] | str:
    """(user id, item number, seconds, rating), or what is wrong with the row."""
    user_id, item_id = _id(values[0]), _id(values[1])
    if reason := _bad_id(user_id) or _bad_id(item_id):
        return reason
    if values[2] is None or values[2] == "":
        return "missing field"
    timestamp = _seconds(values[2])
    if timestamp is None:
        return "unreadable time"
    if timestamp > latest:
        return "future time"
    rating = _rating(values[3]) if len(values) > 3 else math.nan
    if rating is None:
        return "unreadable rating"
    if item_id not in items:
        return "unknown item"
    return user_id, items[item_id], timestamp, rating


def _time_order(table: _Table, bad: _BadRows) -> np.ndarray:
    """Indices by (user, time, file order); of equal events the first is kept."""
    _, user, item, timestamp, _, line = table
    order = np.lexsort((line, item, timestamp, user))
    same = np.ones(max(len(order) - 1, 0), bool)
    for column in (user, timestamp, item):
        same &= column[order][1:] == column[order][:-1]
    repeated = order[1:][same]
    for index in repeated:
        bad.add("duplicate (user, item, time)", int(line[index]))
    keep = np.ones(len(order), bool)
    keep[repeated] = False
    order = np.lexsort((line, timestamp, user))
    return order[keep[order]]


# --------------------------------------------------------------------------- cells


def _id(value: Any) -> str:
    if isinstance(value, float):  # a column with gaps: 7.0 is the id 7, NaN is a gap
        value = int(value) if value.is_integer() else None
    return "" if value is None else _text(value).strip()


def _bad_id(text: str) -> str:
    """Why this cannot be an id; empty if it can."""
    if not text:
        return "missing field"
    return "" if text.isprintable() else "unreadable id"


def _seconds(value: Any) -> int | None:
    """Seconds since 1970; whole thousands are taken off what is too large for that."""
    if isinstance(value, str):
        try:
            number = int(value)
        except ValueError:
            return _seconds_of_text(value.strip())
    elif isinstance(value, datetime):
        return math.floor(value.replace(tzinfo=value.tzinfo or UTC).timestamp())
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            return None
        number = math.floor(value)
    else:
        return None
    if abs(number) > 10**20:
        return None
    while abs(number) > 100_000_000_000:  # milliseconds; or micro- or nanoseconds
        number //= 1000
    return number


_UTC = re.compile(r"\s*(UTC|GMT)$")  # as databases write them
_OFFSET = re.compile(r"\s+(?=[+-]\d\d:?\d\d$)")


def _seconds_of_text(text: str) -> int | None:
    try:
        return _seconds(float(text))
    except ValueError:
        pass
    if text[4:5] == "/":  # 2024/05/01
        text = text.replace("/", "-", 2)
    try:
        text = _OFFSET.sub("", _UTC.sub("+00:00", text))
        return _seconds(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return None


def _rating(value: Any) -> float | None:
    """The number, NaN for an empty cell, None for what is not a number."""
    if value is None or isinstance(value, str) and not value.strip():
        return math.nan
    if isinstance(value, bool) or isinstance(value, list | dict):
        return None
    try:
        rating = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return rating if abs(rating) < 1e30 else None  # NaN too; float32 ends at 3e38


def _text(value: Any, depth: int = 3) -> str:
    """A cell as text; lists, also those written out as text, are joined by commas."""
    missing = value is None or isinstance(value, float) and math.isnan(value)
    if missing or not depth:  # what lies deeper than `depth` lists is left out
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        value = _list(value)
    if isinstance(value, dict):
        value = [f"{key}: {_text(part, depth - 1)}" for key, part in value.items()]
    if isinstance(value, list):
        return ", ".join(filter(None, (_text(part, depth - 1) for part in value)))
    return str(value)


def _list(text: str) -> list | str:
    """The list that JSON or Python reads in the text, never run; or the text."""
    if len(text) > _MAX_LIST:
        return text
    for parse in (json.loads, ast.literal_eval):
        try:
            return list(parse(text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text


# ------------------------------------------------------------------------ templates


def _parse_template(name: str, template: str) -> list[tuple[str, str]]:
    """(text before, column) pairs; a column is a plain name, nothing to look into."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{name}={template!r}: {error}") from None
    pieces = []
    for literal, field, spec, conversion in parsed:
        plain = field is None or field != "" and not set(field) & set(".[]")
        if spec or conversion or not plain:
            raise UserError(
                f"{name}={template!r}: only plain column names may stand in braces, "
                "such as {title}"
            )
        pieces.append((literal, field or ""))
    if not any(field for _, field in pieces):
        raise UserError(f"{name}={template!r} names no column, such as {{title}}")
    return pieces


_GAP = "\0"  # stands where a value is missing; clean_line lets none through
_BRACKETED_GAP = re.compile(r"[(\[{\"'“‘]\s*\0\s*[)\]}\"'”’]")
_GAP_BEFORE_STOP = re.compile(r"[\s,;:.|/–—-]*\0(?=\s*[,;:.|/–—-])")
_GAP_AT_END = re.compile(r"[\s,;:|/–—-]*\0\s*$")
_GAP_BEFORE_WORD = re.compile(r"\0\s*")
_LEADING_STOPS = re.compile(r"^[\s,;:.|/–—-]+")


def _fill(pieces: list[tuple[str, str]], cells: Mapping[str, Any]) -> str:
    """The template with a row's values; "A, {gap}. B" becomes "A. B".

    Empty when all values are missing.
    """
    values = [
        clean_line(_text(cells[field]), _MAX_TEXT) for _, field in pieces if field
    ]
    if not any(values):
        return ""
    filled = iter(values)
    line = "".join(
        literal + ((next(filled) or _GAP) if field else "") for literal, field in pieces
    )
    if all(values):
        return line
    line = _BRACKETED_GAP.sub(_GAP, line)
    starts_with_gap = line.lstrip().startswith(_GAP)
    for gap in (_GAP_BEFORE_STOP, _GAP_AT_END, _GAP_BEFORE_WORD):
        line = gap.sub("", line)
    return _LEADING_STOPS.sub("", line) if starts_with_gap else line
