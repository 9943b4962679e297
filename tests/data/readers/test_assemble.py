"""Broken rows are counted; templates and what they leave."""

import time

import pytest

from tests.helpers.table_files import (
    EVENTS,
    ITEMS,
    check_small_log,
    delimited,
    read,
    write_csv,
)

# --- broken rows


def test_broken_rows_are_counted_by_reason_and_skipped(tmp_path):
    future = int(time.time()) + 10 * 86400
    broken = {
        "missing field": [("", "a", 1, 1), ("u", "", 1, 1), ("u", "a", "", 1)],
        "unreadable id": [("u\u202e1", "a", 1, 1)],
        "unreadable time": [
            ("u", "a", t, 1) for t in ("soon", "nan", "inf", "9" * 30, "2020-13-01")
        ],
        "future time": [("u", "a", future, 1)],
        "unreadable rating": [
            ("u", "a", 1, r) for r in ("good", "nan", "-inf", "1e99")
        ],
        "unknown item": [("u", "zzz", 1, 1)],
        "wrong number of columns": [("u", "a", 1), ("u", "a", 1, 1, 1)],
        "duplicate (user, item, time)": [EVENTS[0], (*EVENTS[2][:3], 5)],
    }
    write_csv(
        tmp_path, events=EVENTS + [row for rows in broken.values() for row in rows]
    )
    log = read(tmp_path)
    check_small_log(log._replace(rows_bad={}, rows_read=8))  # the first of equals stays
    counts = {f"events: {reason}": len(rows) for reason, rows in broken.items()}
    assert log.rows_bad == counts
    assert log.rows_read == 8 + sum(counts.values())


def test_broken_items_are_counted(tmp_path):
    items = [*ITEMS, ("a", "Again"), ("", "No id"), ("e", ""), ("f", " \u200b ")]
    write_csv(tmp_path, items=items)
    log = read(tmp_path)
    assert len(log.item_ids) == 4 and log.titles[0] == "Apple"
    assert log.rows_bad == {
        "items: duplicate item": 1,
        "items: empty title": 2,
        "items: missing field": 1,
    }


def test_too_many_broken_rows_stop_with_counts_and_lines_but_no_text(tmp_path):
    good = [("u", "a", t, 1) for t in range(500)]
    secret = [("u", "a", "secret", 1)] * 90 + [("u", "zzz", 1, 1)] * 11
    write_csv(tmp_path, events=good + secret)
    with pytest.raises(ValueError) as error:
        read(tmp_path)
    message = str(error.value)
    assert "events.csv: 101 of 601 rows" in message and "\n" not in message
    assert "90 unreadable time, line 502, 11 unknown item, line 592" in message
    assert "secret" not in message
    assert read(tmp_path, max_bad_fraction=0.2).rows_bad.keys() == {
        "events: unknown item",
        "events: unreadable time",
    }


def test_a_hundred_broken_rows_are_always_allowed(tmp_path):
    write_csv(tmp_path, events=EVENTS + [("u", "a", "soon", 1)] * 100)
    assert read(tmp_path, max_bad_fraction=0.0).rows_bad == {
        "events: unreadable time": 100
    }


@pytest.mark.parametrize("content", ["", "user,item,time,stars\n"])
def test_no_event_at_all(tmp_path, content):
    write_csv(tmp_path)
    (tmp_path / "events.csv").write_text(content)
    with pytest.raises(ValueError, match="events.csv: no usable row"):
        read(tmp_path)


# --- templates


@pytest.mark.parametrize(
    "template",
    [
        "{name.__class__}",
        "{name.__init__.__globals__}",
        "{name[0]}",
        "{name!r}",
        "{name:>1000000000}",
        "{name:{id}}",
        "{}",
        "{name",
        "no column",
    ],
)
@pytest.mark.parametrize("which", ["title_template", "item_template"])
def test_templates_may_only_name_columns(tmp_path, template, which):
    write_csv(tmp_path)
    with pytest.raises(ValueError, match=f"data.{which}="):
        read(tmp_path, **{which: template})


def test_values_are_not_templates(tmp_path):
    write_csv(tmp_path, items=[("a", "{id.__class__} {0}"), *ITEMS[1:]])
    assert read(tmp_path).titles[0] == "{id.__class__} {0}"


WINE = "{name}, {winery}. {kind} wine from {place} ({year})"


@pytest.mark.parametrize(
    "values, title",
    [
        (
            ("Merlot", "Casa", "Red", "Serra", "2001"),
            "Merlot, Casa. Red wine from Serra (2001)",
        ),
        (("Merlot", "", "Red", "Serra", "2001"), "Merlot. Red wine from Serra (2001)"),
        (("", "Casa", "Red", "Serra", "2001"), "Casa. Red wine from Serra (2001)"),
        (("Merlot", "Casa", "", "Serra", ""), "Merlot, Casa. wine from Serra"),
        (("", "", "Red", "Serra", ""), "Red wine from Serra"),
        (("...And  So", "Casa", "Red", "", ""), "...And So, Casa. Red wine from"),
    ],
)
def test_missing_values_leave_no_stray_punctuation(tmp_path, values, title):
    write_csv(tmp_path)
    names = ["name", "winery", "kind", "place", "year"]
    text = delimited(["id", *names], [("a", *values)], "|")
    (tmp_path / "items.csv").write_text(text)
    log = read(tmp_path, title_template=WINE, item_template=WINE)
    assert log.titles == log.texts == [title]
