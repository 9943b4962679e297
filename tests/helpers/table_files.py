"""A small log as files of the table reader."""

import numpy as np

from blue.data.readers import table

COLUMNS = dict(
    user_id="user",
    item_id="item",
    timestamp="time",
    rating="stars",
    items_item_id="id",
)

EVENTS = [  # two users, out of order; u1's events at 100 keep the order of the file
    ("u2", "b", 50, 4.5),
    ("u1", "c", 300, None),
    ("u1", "b", 100, 2.0),
    ("u1", "a", 100, 1.0),
]

ITEMS = [("a", "Apple"), ("b", "Bread"), ("c", "Cake"), ("d", "Dates")]


def read(path, **changes):
    arguments = dict(
        events="events.csv",
        items="items.csv",
        separator="",
        columns=COLUMNS,
        title_template="{name}",
        item_template="food: {name}",
        max_bad_fraction=0.01,
    )
    arguments |= changes
    fields = {name: arguments.pop(name) for name in table.TableLayout._fields}
    return table.read(str(path), layout=table.TableLayout(**fields), **arguments)


def delimited(header, rows, separator):
    cells = [header, *([("" if c is None else c) for c in row] for row in rows)]
    return "\n".join(separator.join(map(str, row)) for row in cells) + "\n"


def write_csv(path, events=EVENTS, items=ITEMS, separator=","):
    header = ["user", "item", "time", "stars"]
    (path / "events.csv").write_text(delimited(header, events, separator), "utf-8")
    (path / "items.csv").write_text(
        delimited(["id", "name"], items, separator), "utf-8"
    )


def check_small_log(log):
    assert log.user_ids == ["u1", "u2"]
    assert log.item_ids == ["a", "b", "c", "d"]
    assert log.titles == ["Apple", "Bread", "Cake", "Dates"]
    assert log.texts[3] == "food: Dates"
    assert log.user.tolist() == [0, 0, 0, 1]
    assert log.item.tolist() == [1, 0, 2, 1]
    assert log.timestamp.tolist() == [100, 100, 300, 50]
    np.testing.assert_array_equal(log.rating, np.float32([2, 1, np.nan, 4.5]))
    assert (log.rows_read, log.rows_bad) == (8, {})
    types = [x.dtype for x in (log.user, log.item, log.timestamp, log.rating)]
    assert types == [np.int32, np.int32, np.int64, np.float32]
