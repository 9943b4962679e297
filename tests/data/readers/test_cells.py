"""Cells as files give them: ids, times, lists."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.helpers.table_files import COLUMNS, read, write_csv


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
