"""Finds the columns of a file: by the config, else by usual names.

A name from the config that the file has is used. If the file lacks a default name
(`user_id`), exactly one column with a usual name (`customerId`) replaces it; the choice
is logged. Anything else is a one-line error.
"""

import difflib
import functools
import itertools
import logging
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from blue.data.clean import clean_line
from blue.data.readers.cells import read_seconds
from blue.data.readers.rows import column_names, read_rows
from blue.errors import UserError

logger = logging.getLogger("blue")

_SHOWN = 30  # columns in an error, at most
_PEEKED = 1000  # rows whose times are checked

# Default name -> usual ones, without case and separators.
_USUAL: dict[str, frozenset[str]] = {
    "user_id": frozenset(
        "user userid uid username customer customerid client clientid account "
        "accountid member memberid visitor visitorid reviewerid personid".split()
    ),
    "item_id": frozenset(
        "item itemid product productid sku article articleid asin parentasin movieid "
        "bookid gameid songid trackid contentid".split()
    ),
    "timestamp": frozenset(
        "time ts date datetime unixtime eventtime eventdate createdat orderdate "
        "purchasedate invoicedate reviewdate".split()
    ),
    "rating": frozenset("ratings score stars overall".split()),
    "title": frozenset(
        "name itemname itemtitle productname producttitle movietitle".split()
    ),
}


def find_columns(
    events: Path,
    items: Path,
    *,
    separator: str,
    columns: Mapping[str, str],
    title_template: str,
    item_template: str,
) -> tuple[dict[str, str], str, str]:
    """`columns` and the two templates with the names that the two files have.

    A file without the default `rating` has no ratings. Numbers (a file without header)
    stay. A template `{title}` may become another column, and `item_template` the
    `title_template`.

    Raises:
      UserError: names that a file does not have, or default names without one obvious
        column, with the columns there are and the flags to set. Or no such file.
    """
    _check_file(items, "data.items")
    _check_file(events, "data.events")
    columns = dict(columns)
    file = _File(events, column_names(events, separator=separator))
    required = ("user_id", "item_id", "timestamp")
    if all(columns[field].isdecimal() for field in required):  # no header
        columns["rating"] *= columns["rating"].isdecimal()
    elif file.found:
        for field in required:
            columns[field] = file.find(field, columns[field], field)
        if columns["rating"] == "rating" and not file.usual("rating"):
            _say(f"{events.name}: no column of ratings, read without")
            columns["rating"] = ""
        elif columns["rating"]:
            columns["rating"] = file.find("rating", columns["rating"], "rating")
        file.check()

    file = _File(items, column_names(items, separator=separator))
    if not file.found or columns["items_item_id"].isdecimal():
        return columns, title_template, item_template
    same = columns["items_item_id"] == "item_id" and columns["item_id"] in file.found
    name = columns["item_id"] if same else columns["items_item_id"]
    columns["items_item_id"] = file.find("items_item_id", name, "item_id")
    title = file.fill_in("data.title_template", title_template)
    untitled = item_template == "{title}" and "title" not in file.found
    if untitled or item_template == title_template:
        text = title
    else:
        text = file.fill_in("data.item_template", item_template)
    file.check()
    return columns, title, text


def find_user_column(path: Path, name: str, *, separator: str) -> str:
    """The column of user ids in a further file, where events have them as `name`."""
    file = _File(path, column_names(path, separator=separator))
    if not file.found:  # reported when it is read
        return name
    name = "user_id" if "user_id" in file.found else name
    column = file.find("user_id", name, "user_id")
    file.check()
    return column


def check_times(
    path: Path,
    column: str,
    *,
    separator: str,
    max_bad_fraction: float,
) -> None:
    """Raise `UserError` if the first rows' times cannot be read.

    All of them, or more than 100 and than `max_bad_fraction`; fewer are broken rows.
    """
    rows = read_rows(path, [column], separator=separator)
    cells = [(row.line, row.values[0]) for row in itertools.islice(rows, _PEEKED)]
    cells = [(line, value) for line, value in cells if value not in (None, "")]
    bad = [(line, value) for line, value in cells if read_seconds(value) is None]
    if bad and (
        len(bad) == len(cells) or len(bad) > max(100, max_bad_fraction * len(cells))
    ):
        line, value = bad[0]
        raise UserError(
            f"{path}: {len(bad)} of the first {len(cells)} times in column {column!r} "
            f"cannot be read, such as {clean_line(str(value), 40)!r} in line {line}; "
            "a time is seconds or milliseconds since 1970, or ISO 8601: 1714567890, "
            "2024-05-01, 2024-05-01 13:45, 2024-05-01T13:45:00+02:00 (UTC without zone)"
        )


class _File:
    """The columns of one file, and what is missing among them."""

    def __init__(self, path: Path, found: Sequence[str]):
        self.path = path
        self.found = found
        self._missing: list[str] = []
        self._flags: list[str] = []
        self._hints: list[str] = []

    def usual(self, role: str) -> list[str]:
        """The columns that could be meant by a default name."""
        plain = lambda name: "".join(filter(str.isalnum, name)).casefold()
        names = _USUAL[role] | {plain(role)}
        return [name for name in self.found if plain(name) in names]

    def find(self, field: str, name: str, role: str) -> str:
        """The column of data.columns.<field>, whose default name is `role`."""
        if name in self.found:
            return name
        usual = self.usual(role) if name == role else []
        if len(usual) == 1:
            _say(f"{self.path.name}: column {usual[0]!r} is taken as {role}")
            return usual[0]
        self._miss(name, f"--config.data.columns.{field}=NAME", usual)
        return name

    def fill_in(self, field: str, template: str) -> str:
        """The template of the config's `field`, with `{title}` replaced by its
        column."""
        try:
            parsed = [name for _, name, _, _ in string.Formatter().parse(template)]
        except ValueError:  # reported where the template is used
            return template
        for name in filter(None, parsed):
            if name in self.found:
                continue
            usual = self.usual("title") if template == "{title}" else []
            if len(usual) == 1:
                _say(f"{self.path.name}: column {usual[0]!r} is taken as title")
                return f"{{{usual[0]}}}"
            self._miss(name, f"--config.{field}='{{NAME}}'", usual)
        return template

    def _miss(self, name: str, flag: str, usual: Sequence[str]) -> None:
        if name not in self._missing:
            self._missing.append(name)
        if flag not in self._flags:
            self._flags.append(flag)
        if usual:
            meant = f"{_shown(usual)} could be meant by {name!r}"
            self._hints.append(meant)
        elif close := difflib.get_close_matches(name, self.found, n=1):
            self._hints.append(f"did you mean {_shown(close)}?")

    def check(self) -> None:
        """Raise `UserError` if anything is missing."""
        if not self._missing:
            return
        hints = [f"set {' '.join(self._flags)}", *dict.fromkeys(self._hints)]
        if len(self.found) == 1:
            hints.append("if that is several columns, set --config.data.separator")
        if any(name.replace(".", "").isdecimal() for name in self.found):
            hints.append(
                "if the first line is data, name all columns by number, such as "
                "--config.data.columns.user_id=1"
            )
        raise UserError(
            f"{self.path}: no column {_shown(self._missing)}; the file has "
            f"{_shown(self.found)}: {'; '.join(hints)}"
        )


def _check_file(path: Path, field: str) -> None:
    if path.is_file():
        return
    if not path.parent.is_dir():
        raise UserError(f"{path}: no such file, for data.path is no folder")
    there = sorted(file.name for file in path.parent.iterdir() if file.is_file())
    raise UserError(
        f"{path}: no such file; the folder has {_shown(there) or 'no file'}: "
        f"set --config.{field}=NAME or --config.data.path=DIR"
    )


def _shown(names: Sequence[str]) -> str:
    shown = ", ".join(repr(clean_line(name, 40)) for name in names[:_SHOWN])
    return shown + ", ..." * (len(names) > _SHOWN)


@functools.cache  # every stage reads the log
def _say(line: str) -> None:
    logger.info("%s; data.columns and the templates can say otherwise", line)
