"""The Amazon reader: file names, broken rows, repeated reviews, memory, real rows."""

import gzip
import json
import tracemalloc

import pytest

from blue.data.readers import amazon_reviews_2023
from tests.helpers.real_logs import in_fresh_process, real_log

META = [
    {
        "parent_asin": "B1",
        "main_category": "AMAZON FASHION",
        "title": "Wool  Hat",
        "store": "Knit & Co",
        "categories": ["Clothing", "Women", "Hats"],
        "description": ["Warm.", "<b>Soft</b>"],
        "features": [],
        "price": 19.5,
        "details": {"Department": "Womens"},
    },
    {"parent_asin": "B2", "main_category": None, "title": "Socks", "brand": "Sox"},
    {"parent_asin": "B3", "title": None, "main_category": "Books"},
    {"asin": "B4", "title": "Only an asin", "parent_asin": None},
]


def review(user, item, millis, rating=5.0, **more):
    return {
        "user_id": user,
        "parent_asin": item,
        "timestamp": millis,
        "rating": rating,
        "title": "Great",
        "text": "secret",
    } | more


REVIEWS = [
    review("U2", "B1", 1_600_000_002_000),
    review("U1", "B1", 1_600_000_009_999, 1.0),
    review("U1", "B1", 1_600_000_001_500, 4.0),  # earlier, though later in the file
    review("U1", "B2", 1_600_000_005_000, None, category="Socks_and_Feet"),
    review("U1", "B3", 1_600_000_003_000),  # has no title
    review("U2", None, 1_600_000_000_999, asin="B4"),
]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def read(path, **changes):
    arguments = dict(
        title_template="{title}",
        item_template="{title}. {brand}. {categories}. {description} {price}",
        item_columns=("category", "brand"),
        max_bad_fraction=0.0,
    )
    return amazon_reviews_2023.read(str(path), **(arguments | changes))


@pytest.mark.parametrize(
    "reviews, meta",
    [
        ("raw_review_Hats.jsonl", "raw_meta_Hats.jsonl.gz"),
        ("raw_review.jsonl.gz", "raw_meta.jsonl"),
        ("Hats.jsonl", "meta_Hats.jsonl"),
        ("Hats.jsonl.gz", "meta_Hats.jsonl.gz"),
        ("raw/review_categories/Hats.jsonl", "raw/meta_categories/meta_Hats.jsonl"),
    ],
)
def test_names_of_files(tmp_path, reviews, meta):
    write(tmp_path / reviews, REVIEWS)
    write(tmp_path / meta, META)
    write(tmp_path / "profiles.jsonl", [{"user": 1}])  # not one of them
    log = read(tmp_path)
    assert log.user_ids == ["U1", "U2"] and log.item_ids == ["B1", "B2", "B4"]
    assert log.titles == ["Wool Hat", "Socks", "Only an asin"]
    assert log.texts == [
        "Wool Hat. Knit & Co. Clothing, Women, Hats. Warm., <b>Soft</b> 19.5",
        "Socks. Sox.",
        "Only an asin.",
    ]
    assert log.columns == {
        "category": ["AMAZON FASHION", "Socks_and_Feet", ""],
        "brand": ["Knit & Co", "Sox", ""],
    }
    assert log.user.tolist() == [0, 0, 1, 1] and log.item.tolist() == [0, 1, 2, 0]
    assert [t - 1_600_000_000 for t in log.timestamp.tolist()] == [1, 5, 0, 2]
    assert str(log.rating.tolist()) == "[4.0, nan, 5.0, 5.0]"
    assert log.rows_read == 10
    assert log.rows_bad == {
        "items: item without a title": 1,
        "events: item without a title": 1,
        "events: later (user, item)": 1,
    }


def test_all_categories_of_a_folder_are_one_log(tmp_path):
    write(tmp_path / "A.jsonl", [review("U1", "B1", 1000)])
    write(tmp_path / "meta_A.jsonl", META[:2])
    write(tmp_path / "B.jsonl.gz", [review("U1", "B5", 2000), review("U1", "B1", 3000)])
    write(tmp_path / "meta_B.jsonl.gz", [META[0] | {"title": "Other"}])
    write(tmp_path / "raw_review_C.jsonl", [review("U0", "B5", 2000)])
    write(tmp_path / "raw_meta_C.jsonl", [{"parent_asin": "B5", "title": "Boots"}])
    log = read(tmp_path)
    assert log.item_ids == ["B5", "B1", "B2"] and log.titles[1] == "Wool Hat"
    assert [log.user_ids[u] for u in log.user] == ["U0", "U1", "U1"]
    assert log.rows_bad == {
        "items: duplicate item": 1,
        "events: later (user, item)": 1,
    }


def test_broken_rows_have_a_name_and_stop_the_run_when_many(tmp_path):
    write(tmp_path / "raw_meta.jsonl", META)
    broken = [
        review("", "B1", 1),
        review("U", "B1", None),
        review("U", "B1", "soon"),
        review("U", "B1", 10**16 * 5),  # far in the future, whatever the unit
        review("U", "B1", 1, "five"),
        review("U", "B9", 1),
    ]
    write(tmp_path / "raw_review.jsonl", REVIEWS + broken)
    with open(tmp_path / "raw_review.jsonl", "a") as file:
        file.write('{"user_id": "cut sho\n')
    assert read(tmp_path).rows_bad == {
        "items: item without a title": 1,
        "events: broken JSON": 1,
        "events: future time": 1,
        "events: item without a title": 1,
        "events: later (user, item)": 1,
        "events: missing field": 2,
        "events: unknown item": 1,
        "events: unreadable rating": 1,
        "events: unreadable time": 1,
    }
    write(tmp_path / "raw_review.jsonl", REVIEWS + broken * 20)
    with pytest.raises(ValueError, match="120 of 126 rows are broken") as error:
        read(tmp_path, max_bad_fraction=0.5)
    assert "secret" not in str(error.value)


def test_untitled_items_never_stop_the_run(tmp_path):
    write(tmp_path / "raw_meta.jsonl", META)
    write(tmp_path / "raw_review.jsonl", [review("U", "B3", 1)] * 500 + REVIEWS)
    assert read(tmp_path).rows_bad["events: item without a title"] == 501


def test_files_that_are_not_there(tmp_path):
    write(tmp_path / "Hats.jsonl", REVIEWS)
    with pytest.raises(ValueError, match="no NAME.jsonl with meta_NAME.jsonl"):
        read(tmp_path)


def peak_bytes(path, **changes):
    tracemalloc.start()
    log = read(path, **changes)
    return len(log.item), tracemalloc.get_traced_memory()[1]


def test_memory_grows_with_events_not_with_their_text(tmp_path):
    """20 bytes an event, and no review text: each here has 300 characters."""
    users = [f"U{n}" for n in range(50)]
    items = [{"parent_asin": f"B{n}", "title": f"Title {n}"} for n in range(400)]
    sizes = []
    for rows in (4_000, 16_000):
        folder = tmp_path / str(rows)
        write(folder / "raw_meta.jsonl", items)
        kinds = ((users[n % 50], f"B{n // 50}", n) for n in range(rows))
        write(folder / "raw_review.jsonl", (review(*k, text="x" * 300) for k in kinds))
        read_, peak = in_fresh_process(peak_bytes, folder, item_columns=())
        assert read_ == rows
        sizes.append(peak)
    per_row = (sizes[1] - sizes[0]) / 12_000
    assert 20 < per_row < 150  # events, and a few arrays of them while they are sorted


# --- real rows


def test_gift_cards():
    log = real_log("amazon_reviews_2023", "amazon2023_schema_gift_cards")
    assert log.rows_read == 2_286 + 1_547
    assert log.rows_bad == {"events: later (user, item)": 6}
    assert (len(log.user_ids), len(log.item)) == (358, 2_280)
    assert len(set(log.item.tolist())) == 148 and len(log.item_ids) == 1_547
    days = log.timestamp // 86_400 * 86_400
    assert (days.min(), days.max()) == (1_327_968_000, 1_534_896_000)


def test_cross_category():
    log = real_log(
        "amazon_reviews_2023", "amazon2023_cross_category", category="category"
    )
    bad = dict(log.rows_bad)
    assert log.rows_read == 2_360 + 2_207
    assert bad == {
        "items: item without a title": 55,
        "events: item without a title": 55,
        "events: later (user, item)": 3,
    }
    assert len(log.item) == 2_360 - 55 - 3
    assert len(log.item_ids) == 2_207 - 55
    assert all(log.columns["category"]) and len(set(log.columns["category"])) > 20
