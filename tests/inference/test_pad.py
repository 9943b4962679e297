"""Token lists as padded arrays, by hand."""

import numpy as np
import pytest

from blue.errors import UserError
from blue.inference.pad import bucket_for, pad_left, pad_right

ROWS = [[5, 6], [], [7, 8, 9]]


def test_prompts_end_together():
    tokens, mask = pad_left(ROWS, 3, 1)
    assert tokens.tolist() == [[1, 5, 6], [1, 1, 1], [7, 8, 9]]
    assert mask.astype(int).tolist() == [[0, 1, 1], [0, 0, 0], [1, 1, 1]]
    assert tokens.dtype == np.int32


def test_completions_begin_together():
    tokens, mask = pad_right(ROWS, 4, 0)
    assert tokens.tolist() == [[5, 6, 0, 0], [0, 0, 0, 0], [7, 8, 9, 0]]
    assert mask.sum(axis=1).tolist() == [2, 0, 3]


@pytest.mark.parametrize("pad", [pad_left, pad_right])
def test_a_padding_token_in_a_row_counts(pad):
    _, mask = pad([[1, 1]], 3, 1)
    assert mask.sum() == 2


@pytest.mark.parametrize("pad", [pad_left, pad_right])
def test_a_row_that_is_too_long_is_never_cut_in_silence(pad):
    with pytest.raises(ValueError, match="could not broadcast"):
        pad([[1, 2, 3]], 2, 0)


def test_the_smallest_bucket_that_holds_a_prompt():
    buckets = (4, 8, 16)
    assert [bucket_for(buckets, n) for n in (0, 4, 5, 8, 16)] == [4, 4, 8, 8, 16]
    with pytest.raises(UserError, match=r"17 tokens do not fit .* \(4, 8, 16\)"):
        bucket_for(buckets, 17)
