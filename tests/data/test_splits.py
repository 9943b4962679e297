"""Which users are held out: by a hash of their ids, or by a file."""

import pytest

from blue.data.splits import given_users, read_splits, split_users
from blue.errors import UserError

IDS = [f"u{n}" for n in range(20)]


def split(ids=IDS, seed=0, complete=range(20), **sizes):
    sizes = {"num_validation": 3, "num_test": 4} | sizes
    return split_users(ids, seed=seed, users=range(20), complete=complete, **sizes)


def test_users_are_in_one_split_each():
    train, validation, test = split()
    assert (len(validation), len(test)) == (3, 4)
    assert sorted([*train, *validation, *test]) == list(range(20))


def test_a_users_split_depends_on_seed_and_id_alone():
    train, validation, test = split()
    again = split(ids=IDS[::-1])  # the same users, numbered the other way round
    assert [sorted(19 - u for u in part) for part in again] == [train, validation, test]
    assert split(seed=1) != (train, validation, test)
    assert (
        split(num_validation=9)[2] == test
    )  # more for validation: the same are tested


def test_only_users_with_an_example_are_held_out():
    train, validation, test = split(complete=[2, 5, 7])
    assert sorted([*validation, *test]) == [2, 5, 7] and len(train) == 17


def read(tmp_path, text):
    path = tmp_path / "splits.csv"
    path.write_text(text)
    return read_splits(path, IDS, separator="", user_column="user_id")


def test_a_file_says_who_is_where(tmp_path):
    text = "user_id,split\nu0,train\nu1,test\nu2,validation\nu1,test\n"
    splits = read(tmp_path, text)
    assert splits == {"u0": "train", "u1": "test", "u2": "validation"}
    assert given_users(IDS, range(20), splits) == ([0], [2], [1])
    with pytest.raises(UserError, match="no user in test: of the 1 users listed none"):
        given_users(IDS, [0, 2, 3], splits)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("u0,dev\n", "line 2: the split 'dev' of user 'u0' must be one of train, val"),
        ("x,test\n", "line 2: user 'x' is not in the log"),
        (
            "u0,test\nu0,train\n",
            "line 3: user 'u0' is in train here and in test in lin",
        ),
    ],
)
def test_mistakes_of_the_file_are_told_in_one_line(tmp_path, rows, message):
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, f"user_id,split\n{rows}")
    assert "\n" not in str(error.value)
