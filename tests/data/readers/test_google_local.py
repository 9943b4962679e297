"""The Google Local reader: irregular rows, several states, real rows."""

import gzip
import json

import numpy as np
import pytest

from blue.data.readers import google_local
from tests.helpers.real_logs import real_log

PLACES = [
    {
        "gmap_id": "0x1:0x2",
        "name": "Corner Cafe",
        "address": "Corner Cafe, 1 Main St, Albany, NY 12207",
        "category": ["Cafe", "Bakery"],
        "price": "$$",
        "description": None,
    },
    {"gmap_id": "0x3:0x4", "name": "Museum", "address": None, "category": None},
    {"gmap_id": "0x5:0x6", "name": None, "address": "No Name, 2 Main St"},
    {"gmap_id": "0x1:0x2", "name": "Corner Cafe again"},
]
REVIEWS = [
    {"user_id": "9", "gmap_id": "0x1:0x2", "time": 1_600_000_003_000, "rating": 5},
    {"user_id": "10", "gmap_id": "0x3:0x4", "time": 1_600_000_002_000, "rating": None},
    {"user_id": None, "gmap_id": "0x3:0x4", "time": 1_600_000_001_000, "rating": None},
    {"user_id": "9", "gmap_id": "0x5:0x6", "time": 1_600_000_001_000, "rating": 1},
    {"user_id": "9", "gmap_id": "0x3:0x4", "time": 1_600_000_001_000, "rating": 2},
    {"user_id": "9", "gmap_id": "0x3:0x4", "time": 1_600_000_001_400, "rating": 2},
]


def write(path, rows):
    content = "".join(json.dumps({"text": None} | row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def read(path, **changes):
    arguments = dict(
        title_template="{title} | {address}",
        item_template="{title}, {category} ({price})",
        item_columns=("address",),
        max_bad_fraction=0.0,
    )
    return google_local.read(str(path), **(arguments | changes))


@pytest.mark.parametrize("ending", ["json", "json.gz"])
def test_irregular_rows(tmp_path, ending):
    write(tmp_path / f"meta-New_York.{ending}", PLACES)
    write(tmp_path / f"review-New_York.{ending}", REVIEWS)
    log = read(tmp_path)
    assert log.user_ids == ["10", "9"]  # ids are text
    assert log.titles == [
        "Corner Cafe | Corner Cafe, 1 Main St, Albany, NY 12207",
        "Museum",
    ]
    assert log.texts == ["Corner Cafe, Cafe, Bakery ($$)", "Museum"]
    assert log.columns == {"address": ["Corner Cafe, 1 Main St, Albany, NY 12207", ""]}
    assert log.user.tolist() == [0, 1, 1] and log.item.tolist() == [1, 1, 0]
    np.testing.assert_array_equal(log.rating, np.float32([np.nan, 2, 5]))
    assert log.rows_bad == {
        "items: duplicate item": 1,
        "items: item without a title": 1,
        "events: duplicate (user, item, time)": 1,  # within the same second
        "events: item without a title": 1,
        "events: no user": 1,
    }


def test_reviews_without_a_user_never_stop_the_run(tmp_path):
    write(tmp_path / "meta-A.json", PLACES)
    write(tmp_path / "review-A.json", [REVIEWS[2]] * 500 + REVIEWS)
    assert read(tmp_path).rows_bad["events: no user"] == 501
    write(tmp_path / "review-A.json", [REVIEWS[0] | {"time": None}] * 101 + REVIEWS)
    with pytest.raises(ValueError, match="101 missing field, line 1"):
        read(tmp_path)


def test_several_states(tmp_path):
    for state, place in zip("AB", PLACES, strict=False):
        write(tmp_path / f"meta-{state}.json", [place])
        write(tmp_path / f"review-{state}.json.gz", [REVIEWS[ord(state) - ord("A")]])
    log = read(tmp_path)
    assert log.item_ids == ["0x1:0x2", "0x3:0x4"] and len(log.item) == 2


@pytest.mark.parametrize("missing", ["meta", "review"])
def test_files_that_are_not_there(tmp_path, missing):
    there = {"meta": "review", "review": "meta"}[missing]
    write(tmp_path / f"{there}-A.json", PLACES)
    with pytest.raises(ValueError, match=rf"no {missing}-\*.json"):
        read(tmp_path)


def test_new_york():
    log = real_log("google_local", "google_local_new_york")
    assert log.rows_read == 1_000 + 984
    assert log.rows_bad == {"events: no user": 6}
    assert len(log.user_ids) == len(log.item) == 994
    assert len(log.item_ids) == 984
    days = log.timestamp[[log.timestamp.argmin(), log.timestamp.argmax()]] // 86_400
    assert days.tolist() == [15_185, 18_822]  # 2011-07-30 and 2021-07-14
