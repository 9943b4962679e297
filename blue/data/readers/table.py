"""Reader of a user's own log: a file of events and a file of items.

Any column names, item texts from templates.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from blue.data.log import Log
from blue.data.readers.assemble import Catalogue, Events, make_log, take_rows
from blue.data.readers.columns import check_times, find_columns
from blue.data.readers.rows import read_rows
from blue.errors import UserError


class TableLayout(NamedTuple):
    """The files of a log in a folder, and the names of their columns.

    Numbers, from 1, in place of names mean that the text file has no header.
    """

    events: str
    items: str
    separator: str  # in text files; empty: the most frequent one of the first line
    columns: Mapping[str, str]  # by user_id, item_id, timestamp, rating, items_item_id


def read(
    path: str,
    *,
    layout: TableLayout,
    title_template: str,
    item_template: str,
    max_bad_fraction: float,
    item_columns: Sequence[str] = (),
) -> Log:
    """The log in the files `events` and `items` of the folder `path`.

    Times are seconds or milliseconds since 1970 or ISO text; without a time zone, UTC.
    An empty rating cell is a missing rating (NaN), an empty name of its column: none
    has ratings.

    Args:
      layout: its separator is one or more characters; empty: `,`, tab, `;` or `|`.
      title_template: a history line, such as "{title} ({year})", from columns of the
        items. Lists are joined by commas, a missing value leaves no stray punctuation.
      item_template: likewise, for the encoder and the options.
      max_bad_fraction: of a file's rows that may be broken (100 always may). Repeated
        items and events are left out too, but are not broken.
      item_columns: columns of the items to keep by name.

    Raises:
      UserError: one line that names the file and what is wrong with it.
    """
    folder, separator = Path(path), _separator(layout)
    events, items = folder / layout.events, folder / layout.items
    columns, title_template, item_template = find_columns(
        events,
        items,
        separator=separator,
        columns=layout.columns,
        title_template=title_template,
        item_template=item_template,
    )
    catalogue = Catalogue(title_template, item_template, item_columns)
    wanted = list(dict.fromkeys([columns["items_item_id"], *catalogue.fields]))
    item_file = take_rows(
        items,
        read_rows(items, wanted, separator=separator),
        lambda values: catalogue.add(values[0], dict(zip(wanted, values, strict=True))),
        max_bad_fraction,
    )
    times = columns["timestamp"]
    check_times(events, times, separator=separator, max_bad_fraction=max_bad_fraction)
    log_events = Events(catalogue)
    keys = [columns[key] for key in ("user_id", "item_id", "timestamp", "rating")]
    event_file = take_rows(
        events,
        read_rows(events, [key for key in keys if key], separator=separator),
        lambda values: log_events.add(*values),
        max_bad_fraction,
    )
    name, found = folder.resolve().name, ([item_file], [event_file])
    return make_log(
        name, catalogue, log_events, item_files=found[0], event_files=found[1]
    )


def _separator(layout: TableLayout) -> str:
    """The separator as one or more characters. Raises `UserError`."""
    separator = layout.separator.replace("\\t", "\t")
    if any(character in '"\r\n' for character in separator):
        raise UserError(f"data.separator={separator!r} cannot separate columns")
    return separator
