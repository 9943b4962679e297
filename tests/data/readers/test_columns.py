"""The columns of files with and without a header."""

import pytest

from tests.helpers.table_files import (
    COLUMNS,
    EVENTS,
    ITEMS,
    check_small_log,
    delimited,
    read,
    write_csv,
)


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
