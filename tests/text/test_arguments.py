import math

import numpy as np
import pytest

from blue.errors import UserError
from blue.text.arguments import check_length, clean_histories, clean_ratings


def test_titles_are_cleaned_as_readers_clean_them():
    given = [["a  lamp\n", "\u200bred"], [], ["x" * 400]]
    assert clean_histories(given) == [["a lamp", "red"], [], ["x" * 300]]


def test_ratings_are_numbers_a_title_and_nan_where_there_is_none():
    histories = [["a", "b", "c"], ["d"], []]
    found = clean_ratings([[4.5, None, math.nan], None, []], histories)
    np.testing.assert_array_equal(found[0], np.float32([4.5, np.nan, np.nan]))
    assert np.isnan(found[1]).tolist() == [True] and len(found[2]) == 0
    assert all(row.dtype == np.float32 for row in found)
    assert [len(row) for row in clean_ratings(None, histories)] == [3, 1, 0]
    (row,) = clean_ratings([np.float32([2, 3])], [["a", "b"]])
    assert row.tolist() == [2, 3]


@pytest.mark.parametrize(
    "histories, told",
    [
        ("ab", "one user is [[title, title]]"),
        (["a", "b"], "one user is [[title, title]]"),
        ([["a", "\u200b "]], "histories[0][1] is a title without visible text"),
    ],
)
def test_what_is_no_list_of_users_is_one_line(histories, told):
    with pytest.raises(UserError) as caught:
        clean_histories(histories)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "ratings, told",
    [
        ([[1.0], [2.0]], "ratings is of 2 users, must be of 1"),
        ([[1.0, 2.0]], "ratings[0] has 2 ratings, must have 1"),
        ([[math.inf]], "ratings[0][0] is inf, must be a finite number"),
    ],
)
def test_ratings_that_do_not_fit_are_one_line(ratings, told):
    with pytest.raises(UserError) as caught:
        clean_ratings(ratings, [["a"]])
    assert str(caught.value) == told


def test_one_entry_a_user():
    check_length("ids", ["a", "b"], 2)
    with pytest.raises(UserError, match="ids is of 1 users, must be of 2"):
        check_length("ids", ["a"], 2)
