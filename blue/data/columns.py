"""Which column of a file is which: as told, else an obvious one; or what to set.

A name from the config that the file has is taken as it is. Where the file has none of a
default name (`user_id`), a column by one of its usual names (`customerId`) takes its
place if there is exactly one, and the log says so. All else is a one-line error.
"""

import difflib
import functools
import itertools
import logging
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from blue.data.cells import read_seconds
from blue.data.log import clean_line
from blue.data.rows import column_names, read_rows
from blue.errors import UserError

logger = logging.getLogger("blue")

_SHOWN = 30  # columns in an error, at most
_PEEKED = 1000  # rows whose times are tried

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
    templates: Mapping[str, str],
) -> tuple[dict[str, str], dict[str, str]]:
    """`columns` and `templates` with the names that the two files have.

    Args:
      columns: config field -> name, as `table.read` has them; all numbers: the file has
        no header, and nothing is to be found. A file without the default `rating` has
        no ratings.
      templates: config field -> template of the items' columns; `{title}` alone may
        become another column.

    Raises:
      UserError: a name that the file does not have, or a default name without one
        obvious column; with the columns there are and the flag to set.
    """
    found = {path: column_names(path, separator=separator) for path in (items, events)}
    named = dict(columns)
    required = ("user_id", "item_id", "timestamp")
    if all(named[field].isdecimal() for field in required):  # no header
        named["rating"] = named["rating"] if named["rating"].isdecimal() else ""
    elif found[events]:
        for field in required:
            named[field] = _find(events, found[events], field, columns[field], field)
        if columns["rating"]:
            named["rating"] = _find_rating(events, found[events], columns["rating"])
    if not found[items] or columns["items_item_id"].isdecimal():
        return named, dict(templates)
    key = columns["items_item_id"]
    if key == "item_id" and named["item_id"] in found[items]:
        key = named["item_id"]  # the same name in both files
    named["items_item_id"] = _find(items, found[items], "items_item_id", key, "item_id")
    return named, {
        field: _find_in_template(items, found[items], field, template)
        for field, template in templates.items()
    }


def find_user_column(path: Path, name: str, *, separator: str) -> str:
    """The column of user ids in a further file, where events have them as `name`."""
    found = column_names(path, separator=separator)
    name = "user_id" if "user_id" in found or not found else name
    return _find(path, found, "user_id", name, "user_id") if found else name


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


def _find(path: Path, found: Sequence[str], field: str, name: str, role: str) -> str:
    """The name of the column for data.columns.<field>, which has the default `role`."""
    if name in found:
        return name
    usual = _usual(found, role) if name == role else []
    if len(usual) == 1:
        _say(f"{path.name}: column {usual[0]!r} is taken as {role}")
        return usual[0]
    _refuse(path, found, name, f"data.columns.{field}", usual)


def _find_rating(path: Path, found: Sequence[str], name: str) -> str:
    if name != "rating" or name in found or _usual(found, name):
        return _find(path, found, "rating", name, "rating")
    _say(f"{path.name}: no column of ratings, read without")
    return ""


def _find_in_template(
    path: Path, found: Sequence[str], field: str, template: str
) -> str:
    try:
        parsed = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    except ValueError:  # told where the template is used
        return template
    for name in parsed:
        if name in found:
            continue
        usual = _usual(found, "title") if template == "{title}" else []
        if len(usual) == 1:
            _say(f"{path.name}: column {usual[0]!r} is taken as title ({field})")
            return f"{{{usual[0]}}}"
        _refuse(path, found, name, field, usual, template)
    return template


def _usual(found: Sequence[str], role: str) -> list[str]:
    plain = lambda name: "".join(filter(str.isalnum, name)).casefold()
    own = plain(role)
    return [name for name in found if plain(name) in _USUAL[role] | {own}]


@functools.cache  # every stage reads the log
def _say(line: str) -> None:
    logger.info("%s; --config.data.columns.* and templates change it", clean_line(line))


def _refuse(
    path: Path,
    found: Sequence[str],
    name: str,
    field: str,
    usual: Sequence[str],
    template: str = "",
) -> NoReturn:
    shown = ", ".join(repr(clean_line(column, 40)) for column in found[:_SHOWN])
    if template:
        flag = f"--config.{field}='{{NAME}}'"
        named = f", which {field}={template!r} names"
    else:
        flag, named = f"--config.{field}=NAME", f" ({field})"
    hints = []
    if usual:
        meant = " or ".join(repr(clean_line(column, 40)) for column in usual)
        hints.append(f"more than one could be meant, {meant}")
    elif close := difflib.get_close_matches(name, found, n=1):
        hints.append(f"did you mean {close[0]!r}?")
    if len(found) == 1:
        hints.append("if that is several columns, set --config.data.separator")
    if any(column.replace(".", "").isdecimal() for column in found):
        hints.append(
            "if the first line is data, name columns by number, such as "
            "--config.data.columns.user_id=1"
        )
    raise UserError(
        f"{path}: no column {name!r}{named}; the file has {shown}"
        f"{', ...' if len(found) > _SHOWN else ''}: set {flag}"
        + "".join(f"; {hint}" for hint in hints)
    )
