"""The table reader: formats, broken rows, templates, and a real log."""

import gzip
import json
import time

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from blue.data.log import clean_line
from blue.data.readers import table
from tests.helpers.real_logs import real_log, xwines

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
    fields = {name: arguments.pop(name) for name in table.Layout._fields}
    return table.read(str(path), layout=table.Layout(**fields), **arguments)


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


# --- formats


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_separator_is_guessed_from_the_header(tmp_path, separator):
    write_csv(tmp_path, separator=separator)
    log = read(tmp_path)
    check_small_log(log)
    assert log.name == tmp_path.name


@pytest.mark.parametrize("separator", ["::", "\t", "\\t", "~"])
def test_separator_may_be_given(tmp_path, separator):
    write_csv(tmp_path, separator=separator.replace("\\t", "\t"))
    check_small_log(read(tmp_path, separator=separator))


def test_numbers_name_the_columns_of_files_without_a_header(tmp_path):
    for name, rows in (("ratings.dat", EVENTS), ("movies.dat", ITEMS)):
        (tmp_path / name).write_text(delimited(rows[0], rows[1:], "::"), "utf-8")
    numbers = dict(
        user_id="1", item_id="2", timestamp="3", rating="4", items_item_id="1"
    )
    log = read(
        tmp_path,
        events="ratings.dat",
        items="movies.dat",
        separator="::",
        columns=numbers,
        title_template="{2}",
        item_template="food: {2}",
    )
    check_small_log(log)


@pytest.mark.parametrize("ending", ["jsonl", "json", "ndjson.gz"])
def test_json_lines(tmp_path, ending):
    for name, keys, rows in (
        ("events", ["user", "item", "time", "stars"], EVENTS),
        ("items", ["id", "name"], ITEMS),
    ):
        lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in rows]
        content = "\n".join(lines).encode()
        content = gzip.compress(content) if ending.endswith("gz") else content
        (tmp_path / f"{name}.{ending}").write_bytes(content)
    check_small_log(read(tmp_path, events=f"events.{ending}", items=f"items.{ending}"))


def test_parquet_with_a_timestamp_column(tmp_path):
    user, item, seconds, stars = zip(*EVENTS, strict=True)
    times = pa.array([s * 1000 for s in seconds]).cast(
        pa.timestamp("ms", tz="Asia/Tokyo")
    )
    events = pa.table({"user": user, "item": item, "time": times, "stars": stars})
    parquet.write_table(events, tmp_path / "events.parquet")
    ids, names = zip(*ITEMS, strict=True)
    parquet.write_table(
        pa.table({"id": ids, "name": names}), tmp_path / "items.parquet"
    )
    check_small_log(read(tmp_path, events="events.parquet", items="items.parquet"))


def test_byte_order_mark_quotes_and_line_breaks_in_csv(tmp_path):
    write_csv(tmp_path)
    name = '"Bread, ""dark""\r\n large"'
    text = f"id,name\r\na,Apple\r\nb,{name}\r\nc,Cake\r\nd,Dates\r\n"
    (tmp_path / "items.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read(tmp_path).titles[1] == 'Bread, "dark" large'


def test_numeric_ids_agree_between_integer_and_float_columns(tmp_path):
    """pandas makes a column with gaps a float column."""
    events = pa.table({"user": [7.0, None], "item": [1, 1], "time": [5, 6]})
    parquet.write_table(events, tmp_path / "events.parquet")
    (tmp_path / "items.csv").write_text("id,name\n1,One\n")
    log = read(tmp_path, events="events.parquet", columns=COLUMNS | {"rating": ""})
    assert (log.user_ids, log.item_ids, log.item.tolist()) == (["7"], ["1"], [0])
    assert np.isnan(log.rating).all()
    assert log.rows_bad == {"events: missing field": 1}


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("1494051253", 1494051253),
        ("1494051253000", 1494051253),  # milliseconds
        ("1494051253.75", 1494051253),
        ("1.494051253e12", 1494051253),
        ("-86400", -86400),
        ("2017-05-05 06:14:13", 1493964853),  # naive: UTC
        ("2017-05-05T06:14:13Z", 1493964853),
        ("2017-05-05T08:14:13+02:00", 1493964853),
        ("2017-05-05", 1493942400),
    ],
)
def test_times(tmp_path, text, seconds):
    write_csv(tmp_path, events=[("u", "a", text, 1)])
    assert read(tmp_path).timestamp.tolist() == [seconds]


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


def test_broken_json_lines(tmp_path):
    write_csv(tmp_path)
    good = {"user": "u", "item": "a", "time": 1, "stars": 3}
    rows = [
        json.dumps(good),
        '{"user": "u", "item": ',
        "[1, 2]",
        "[" * 100_000,
        json.dumps(good | {"stars": "NaN"}),
        json.dumps(good | {"stars": True}),
        json.dumps(good | {"stars": [3]}),
        json.dumps(good | {"time": [3]}),
        json.dumps(good | {"time": 10**400}),
        '{"user": "\\ud800", "item": "a", "time": 1, "stars": 1}',
        json.dumps({"user": "u", "item": "a", "time": 2}),  # no rating is not broken
        "",
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(rows))
    log = read(tmp_path, events="events.jsonl")
    assert log.timestamp.tolist() == [1, 2]
    assert np.isnan(log.rating[1])
    assert log.rows_bad == {
        "events: broken JSON": 2,
        "events: not a JSON object": 1,
        "events: unreadable id": 1,
        "events: unreadable rating": 3,
        "events: unreadable time": 2,
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


def test_a_quote_that_never_ends_counts_every_line_it_swallows(tmp_path):
    write_csv(tmp_path)
    lines = [f"u,a,{t},1" for t in range(20_000)]
    lines[1000] = 'u,"a,1000,1'
    text = "\n".join(["user,item,time,stars", *lines]) + "\n"
    (tmp_path / "events.csv").write_text(text)
    with pytest.raises(ValueError, match="of 20000 rows are broken.*line 1002"):
        read(tmp_path)


# --- files


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match="items.csv: no such file"):
        read(tmp_path)


def test_truncated_gzip(tmp_path):
    write_csv(tmp_path, events=[(f"u{t}", "a", t, 1) for t in range(1000)])
    content = gzip.compress((tmp_path / "events.csv").read_bytes())
    for damaged in (
        content[: len(content) // 2],
        b"user,item\n",
        content[:-9] + b"123456789",
    ):
        (tmp_path / "events.csv.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match="events.csv.gz: the gzip file is"):
            read(tmp_path, events="events.csv.gz")


def test_invalid_utf8_names_the_line(tmp_path):
    write_csv(tmp_path)
    (tmp_path / "items.csv").write_bytes(b"id,name\na,Apple\nb,Caf\xe9\n")
    with pytest.raises(ValueError, match="items.csv: line 3 is not UTF-8"):
        read(tmp_path)


def test_damaged_parquet(tmp_path):
    write_csv(tmp_path)
    (tmp_path / "events.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="events.parquet: not a readable Parquet"):
        read(tmp_path, events="events.parquet")


@pytest.mark.parametrize("content", ["", "user,item,time,stars\n"])
def test_no_event_at_all(tmp_path, content):
    write_csv(tmp_path)
    (tmp_path / "events.csv").write_text(content)
    with pytest.raises(ValueError, match="events.csv: no usable row"):
        read(tmp_path)


@pytest.mark.parametrize("field", ["user_id", "rating", "items_item_id"])
def test_unknown_column_lists_the_columns(tmp_path, field):
    write_csv(tmp_path)
    with pytest.raises(ValueError) as error:
        read(tmp_path, columns=COLUMNS | {field: "typo"})
    listed = "'id', 'name'" if field == "items_item_id" else "'user', 'item', 'time'"
    assert "no column 'typo'" in str(error.value) and listed in str(error.value)


def test_json_field_that_no_row_has(tmp_path):
    write_csv(tmp_path)
    (tmp_path / "items.jsonl").write_text('{"id": "a", "title": "Apple"}\n')
    with pytest.raises(ValueError, match="no column 'name'.* has 'id', 'title'"):
        read(tmp_path, items="items.jsonl")


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


@pytest.mark.parametrize(
    "value, title",
    [
        ("['Pork', 'Veal']", "Pork, Veal"),
        ('["Pork", null, 2]', "Pork, 2"),
        ("[]", None),
        ("[Pork]", "[Pork]"),
        ("[__import__('os').getcwd()]", "[__import__('os').getcwd()]"),
        ("[" + "-" * 5000 + "1]", "[" + "-" * 299),
        ("[[[[[['deep']]]]], 'a']", "a"),
    ],
)
def test_lists_written_as_text_are_joined(tmp_path, value, title):
    write_csv(tmp_path)
    rows = [{"id": "a", "name": value}, {"id": "b", "name": "Bread"}]
    text = "\n".join(map(json.dumps, rows))
    (tmp_path / "items.jsonl").write_text(text)
    titles = read(tmp_path, items="items.jsonl").titles
    assert titles == ([title] if title else []) + ["Bread"]


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


def test_clean_line_shows_all_there_is():
    dirty = (
        "a\u200b\u202e b\x00\n\tc \U000e0041 \ud800 ＜turn＞ e\u200b\u0301\ufe0f \u3164"
    )
    assert clean_line(dirty) == "a b c <turn> \u00e9"
    assert clean_line(clean_line(dirty)) == clean_line(dirty)
    assert clean_line("ab " * 200, max_chars=6) == "ab ab"
    assert clean_line("emoji 👍🏽 stays, naïve 東京") == "emoji 👍🏽 stays, naïve 東京"


# --- a real log


def test_xwines():
    log, _ = xwines()
    assert (log.rows_read, log.rows_bad) == (105_338 + 1_007, {})
    counts = np.bincount(log.user)
    assert [len(counts), (counts >= 10).sum(), (counts >= 20).sum()] == [
        7430,
        5933,
        1267,
    ]
    assert len(np.unique(log.item)) == 999 and len(log.titles) == 1007
    assert log.rating.mean() == pytest.approx(3.825, abs=1e-3)
    days = log.timestamp[[log.timestamp.argmin(), log.timestamp.argmax()]] // 86400
    assert (
        days == np.array(["2012-04-19", "2021-12-31"], "datetime64[D]").astype(int)
    ).all()
    first = log.item_ids.index("100001")
    assert log.titles[first] == (
        "Espumante Moscatel, Casa Perini. Sparkling wine from Serra Gaúcha"
    )
    assert log.texts[first].startswith(
        "Espumante Moscatel. With Pork, Rich Fish, Shellfish. http"
    )


def shape(log):
    """Users, interactions read, items in the log."""
    duplicates = log.rows_bad.get("events: duplicate (user, item, time)", 0)
    return len(log.user_ids), len(log.item) + duplicates, len(np.unique(log.item))


def test_board_games():
    log = real_log(
        "table",
        "bgg25_board_games",
        events="ratings.tsv.gz",
        items="raw_game_metadata_1.tsv",
        columns=dict(user_id="user_id", item_id="game_id", items_item_id="id"),
        title_template="{name} ({year})",
        item_template="{name}",
        category="weight",
    )
    assert shape(log) == (30_562, 1_015_468, 901)
    assert set(log.rows_bad) <= {"events: duplicate (user, item, time)"}
    assert log.rows_read == 1_015_468 + 901
    assert log.rating.mean() == pytest.approx(7.357, abs=2e-3)
    assert log.timestamp.min() // 86_400 == 11_442  # 2001-04-30: milliseconds
    assert log.titles[0] == "Die Macher (1986)" and log.columns["weight"][0] == "4.32"


def test_gift_cards_of_2018():
    log = real_log(
        "table",
        "amazon2018_gift_cards",
        events="Gift_Cards_5.json.gz",
        items="meta_Gift_Cards.json.gz",
        columns=dict(
            user_id="reviewerID",
            item_id="asin",
            timestamp="unixReviewTime",
            rating="overall",
            items_item_id="asin",
        ),
        item_template="{title}. {brand}",
        category="category",
    )
    assert shape(log) == (358, 2_286, 148)
    assert log.rows_read == 2_286 + 1_547 and (log.rating == 5).sum() >= 2_100
    assert log.columns["category"][0] == "Gift Cards, Gift Cards"


def test_purchases_are_their_own_catalogue_and_have_no_ratings():
    log = real_log(
        "table",
        "online_retail_uk",
        events="online_retail.csv.gz",
        items="online_retail.csv.gz",
        columns=dict(
            user_id="CustomerID",
            item_id="StockCode",
            timestamp="InvoiceDate",
            rating="",
            items_item_id="StockCode",
        ),
        title_template="{Description}",
        item_template="{Description}",
    )
    assert shape(log) == (3_050, 282_860, 3_610)
    assert log.rows_bad["items: duplicate item"] == 282_860 - 3_610
    assert 5_225 <= log.rows_bad["events: duplicate (user, item, time)"] < 10_000
    assert np.isnan(log.rating).all() and "WHITE METAL LANTERN" in log.titles
