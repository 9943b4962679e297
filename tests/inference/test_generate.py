"""A profile from its tokens."""

import numpy as np
import pytest

from blue.inference.generate import decode_profile
from tests.helpers.small_model import few_words


@pytest.fixture(scope="module")
def tokenizer():
    return few_words()


def test_decode_profile_knows_finished_and_foreign_ids(tokenizer):
    end = tokenizer.end_ids[0]
    ids = np.array([*tokenizer.encode("red tent"), 10**6, end, 0])
    mask = np.array([True] * (len(ids) - 1) + [False])
    profile = decode_profile(tokenizer, ids, mask)
    assert profile == ("red tent", len(ids) - 1, True)
    assert not decode_profile(tokenizer, ids[:2], mask[:2]).finished
    empty = decode_profile(tokenizer, np.array([end]), np.array([True]))
    assert empty == ("", 1, True)
