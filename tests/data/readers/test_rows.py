"""Rows of every kind of file, and damaged files."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.helpers.table_files import EVENTS, ITEMS, check_small_log, read, write_csv

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
