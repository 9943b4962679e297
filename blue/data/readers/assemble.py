"""Shared by readers: rows left out, item texts from templates, events as arrays.

A reader streams rows into a `Catalogue` and into `Events`; `make_log` puts both into a
`Log`. A row that is left out is counted by reason, never shown.
"""

import re
import string
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blue.data.clean import clean_line
from blue.data.log import Log, event_order
from blue.data.readers.cells import (
    bad_id,
    read_id,
    read_rating,
    read_seconds,
    read_text,
)
from blue.data.readers.rows import Row
from blue.errors import UserError

_MAX_TEXT = 2000  # characters of an item's text; a title has clean_line's default
_MAX_BAD = 100  # broken rows that are always tolerated
_FUTURE_S = 86400  # times this far ahead are tolerated: clocks and time zones differ

# Reasons for which rows of an undamaged log are left out; all others count as broken.
UNTITLED = "item without a title"
ANONYMOUS = "no user"
_EXPECTED = {UNTITLED, ANONYMOUS, "duplicate item"}


# ------------------------------------------------------------------- rows left out


class LeftOut:
    """Rows of one file that are left out: number, reasons, first line."""

    def __init__(self, path: Path):
        self.path = path
        self.rows = 0  # read
        self.counts: Counter[str] = Counter()
        self.first: dict[str, int] = {}

    def __str__(self) -> str:
        kinds = sorted(self.counts.items(), key=lambda kind: (-kind[1], kind[0]))
        return ", ".join(f"{n} {kind}, line {self.first[kind]}" for kind, n in kinds)

    def check(self, max_bad_fraction: float) -> None:
        """Raise `UserError` if too many rows are broken."""
        bad = sum(n for kind, n in self.counts.items() if kind not in _EXPECTED)
        if bad > max(_MAX_BAD, int(max_bad_fraction * self.rows)):
            raise UserError(
                f"{self.path}: {bad} of {self.rows} rows are broken, more than "
                f"{_MAX_BAD} and than data.max_bad_fraction={max_bad_fraction} of them "
                f"(how many, why, where first: {self})"
            )


def take_rows(
    path: Path,
    rows: Iterable[Row],
    take: Callable[[list], str],
    max_bad_fraction: float,
) -> LeftOut:
    """Passes each row's values to `take`, which returns the reason if it is left out.

    Raises:
      UserError: one line, if more than `max_bad_fraction` of the rows (and 100) are
        broken.
    """
    left_out = LeftOut(path)
    for row in rows:
        left_out.rows += row.lines
        if reason := row.reason or take(row.values):
            left_out.counts[reason] += row.lines
            left_out.first.setdefault(reason, row.line)
    left_out.check(max_bad_fraction)
    return left_out


# ------------------------------------------------------------------ items and events


class Catalogue:
    """Items in the order of the file; the first row of an id counts.

    `fields` are the columns that templates and `columns` name.
    """

    def __init__(
        self,
        title_template: str,
        item_template: str,
        columns: Sequence[str] = (),
        known: Sequence[str] | None = None,
    ):
        self._title = parse_template("data.title_template", title_template)
        self._text = parse_template("data.item_template", item_template)
        named = [field for _, field in self._title + self._text if field]
        self.fields = list(dict.fromkeys([*named, *columns]))
        for field in self.fields:
            if known is not None and field not in known:
                raise UserError(
                    f"no item column {field!r}, which data.title_template, "
                    "data.item_template, data.category or data.pseudo_item_template "
                    f"names; this reader has {', '.join(known)}"
                )
        self.numbers: dict[str, int] = {}
        self.untitled: set[str] = set()
        self.titles: list[str] = []
        self.texts: list[str] = []
        self.columns: dict[str, list[str]] = {name: [] for name in columns}

    def add(self, value: Any, cells: Mapping[str, Any]) -> str:
        """Adds an item by its id and cells; returns the reason if it was not added."""
        item_id = read_id(value)
        if reason := bad_id(item_id):
            return reason
        if item_id in self.numbers:
            return "duplicate item"
        title = clean_line(fill(self._title, cells))
        text = clean_line(fill(self._text, cells), _MAX_TEXT)
        if not (title and text):
            return "empty text" if title else "empty title"
        self.numbers[item_id] = len(self.titles)
        self.titles.append(title)
        self.texts.append(title if text == title else text)  # one string, not two
        for name, values in self.columns.items():
            value = clean_line(read_text(cells[name]), _MAX_TEXT)
            values.append(sys.intern(value))  # few brands and categories, many items
        return ""

    def add_titled(self, value: Any, cells: Mapping[str, Any]) -> str:
        """Like `add`, but leaves out an item without a `title`, with its events."""
        if clean_line(read_text(cells["title"])):
            return self.add(value, cells)
        self.untitled.add(read_id(value))
        return UNTITLED


class Events:
    """Usable events in file order: 20 bytes each, and each user's id once."""

    def __init__(self, catalogue: Catalogue):
        self._items, self._untitled = catalogue.numbers, catalogue.untitled
        self._latest = time.time() + _FUTURE_S
        self.users: dict[str, int] = {}
        self.user, self.item, self.timestamp = array("i"), array("i"), array("q")
        self.rating = array("f")

    def add(self, user: Any, item: Any, when: Any, rating: Any = None) -> str:
        """Adds an event; returns the reason if it was not added."""
        user_id, item_id = read_id(user), read_id(item)
        if reason := bad_id(user_id) or bad_id(item_id):
            return reason
        if when is None or when == "":
            return "missing field"
        seconds, stars = read_seconds(when), read_rating(rating)
        if seconds is None:
            return "unreadable time"
        if seconds > self._latest:
            return "future time"
        if stars is None:
            return "unreadable rating"
        number = self._items.get(item_id)
        if number is None:
            return UNTITLED if item_id in self._untitled else "unknown item"
        self.user.append(self.users.setdefault(user_id, len(self.users)))
        self.item.append(number)
        self.timestamp.append(seconds)
        self.rating.append(stars)
        return ""


def make_log(
    name: str,
    catalogue: Catalogue,
    events: Events,
    *,
    item_files: Sequence[LeftOut],
    event_files: Sequence[LeftOut],
    once: bool = False,
) -> Log:
    """The log of a catalogue and events; `once`: a user's first event with an item.

    Raises:
      UserError: one line, if there is no event.
    """
    if not events.user:
        reasons = ", ".join(filter(None, map(str, event_files))) or "empty"
        raise UserError(f"{event_files[0].path}: no usable row ({reasons})")
    user_ids = sorted(events.users)
    rank = np.empty(len(user_ids), np.int32)  # of users numbered as they appeared
    rank[[events.users[user_id] for user_id in user_ids]] = np.arange(len(user_ids))
    user = rank[np.frombuffer(events.user, np.int32)]
    item = np.frombuffer(events.item, np.int32)
    timestamp = np.frombuffer(events.timestamp, np.int64)
    rating = np.frombuffer(events.rating, np.float32)
    order = event_order(user, item, timestamp, once=once)
    rows_bad: Counter[str] = Counter()
    for kind, files in (("items", item_files), ("events", event_files)):
        for file in files:
            rows_bad.update({f"{kind}: {why}": n for why, n in file.counts.items()})
    if len(order) < len(user):
        reason = "later (user, item)" if once else "duplicate (user, item, time)"
        rows_bad[f"events: {reason}"] = len(user) - len(order)
    return Log(
        name=name,
        user_ids=user_ids,
        item_ids=list(catalogue.numbers),
        titles=catalogue.titles,
        texts=catalogue.texts,
        user=user[order],
        item=item[order],
        timestamp=timestamp[order],
        rating=rating[order],
        rows_read=sum(file.rows for file in (*item_files, *event_files)),
        rows_bad=dict(sorted(rows_bad.items())),
        columns=catalogue.columns,
    )


# ------------------------------------------------------------------------ templates


def parse_template(name: str, template: str) -> list[tuple[str, str]]:
    """(text before, column) pairs; a column is a plain name without attributes."""
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


_GAP = "\0"  # marks a missing value; clean_line removes this character
_BRACKETED_GAP = re.compile(r"[(\[{\"'“‘]\s*\0\s*[)\]}\"'”’]")
_GAP_BEFORE_STOP = re.compile(r"(?:[\s,;:.|/–—-]*\0)+(?=\s*[,;:.|/–—-])")
_GAP_AT_END = re.compile(r"(?:[\s,;:|/–—-]*\0)+\s*$")
_GAP_BEFORE_WORD = re.compile(r"\0\s*")
_LEADING_STOPS = re.compile(r"^[\s,;:.|/–—-]+")


def fill(pieces: list[tuple[str, str]], cells: Mapping[str, Any]) -> str:
    """The template with a row's values; "A, {gap}. B" becomes "A. B".

    Empty when all values are missing.
    """
    values = [
        clean_line(read_text(cells[field]), _MAX_TEXT) for _, field in pieces if field
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


def template_columns(name: str, template: str) -> list[str]:
    """The columns that the template of the config field `name` names, each once."""
    if not template:
        return []
    return list(dict.fromkeys(f for _, f in parse_template(name, template) if f))
