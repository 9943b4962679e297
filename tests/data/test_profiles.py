"""profiles.jsonl of other methods: read in the users' order, refused in one line."""

import json

import pytest

from blue.data.profiles import read_profiles
from blue.errors import UserError

FIELD = "evaluate.profiles.rlpf"


def write(path, *rows):
    path.write_bytes(b"\n".join(json.dumps(r).encode() for r in rows) + b"\n")
    return str(path)


def test_reads_in_the_order_of_the_users(tmp_path):
    path = write(
        tmp_path / "p.jsonl",
        {"user_id": "b", "profile": "likes tents", "num_tokens": 2},
        {"user_id": 7, "profile": ""},
        {"user_id": "other", "profile": "not asked for"},
    )
    with open(path, "a") as file:
        file.write("\n")  # an empty line does no harm
    assert read_profiles(path, ["7", "b"], field=FIELD) == ["", "likes tents"]


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"user_id": "a", "profile": "x"}\n{"user_id"\n', "line 2: .*JSON object"),
        (b'["a", "x"]\n', "line 1: .*keys user_id and profile"),
        (b'{"user_id": "a"}\n', "line 1: .*keys user_id and profile"),
        (b'{"user_id": "a", "profile": null}\n', "line 1: profile=None"),
        (b'{"user_id": "a", "profile": "\xff"}\n', "line 1: .*JSON object"),
        (b'{"user_id": "a", "profile": "x"}\n' * 2, "line 2: user_id 'a' .*already"),
        (b'{"user_id": "b", "profile": "x"}\n', "1 of the 2 users .*user_id 'a'"),
    ],
)
def test_tells_what_is_wrong_in_one_line(tmp_path, content, message):
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{FIELD}=.*p.jsonl.*{message}") as error:
        read_profiles(str(path), ["b", "a"], field=FIELD)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=f"{FIELD}=.*no such file"):
        read_profiles(str(tmp_path / "none.jsonl"), ["a"], field=FIELD)
