"""The table reader on real logs."""

import numpy as np
import pytest

from tests.helpers.real_logs import real_log, xwines

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
