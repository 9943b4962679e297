"""Token lists -> padded arrays."""

from collections.abc import Sequence

import numpy as np

from blue.errors import UserError


def pad_left(
    rows: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Right-aligned tokens [n, length] int32 and their mask."""
    tokens = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        if row:
            tokens[i, length - len(row) :] = row
            mask[i, length - len(row) :] = True
    return tokens, mask


def pad_right(
    rows: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Left-aligned tokens [n, length] int32 and their mask: targets and completions."""
    tokens = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        mask[i, : len(row)] = True
    return tokens, mask


def bucket_for(buckets: Sequence[int], length: int) -> int:
    """The smallest bucket that holds `length` tokens."""
    for bucket in buckets:
        if length <= bucket:
            return bucket
    raise UserError(f"{length} tokens do not fit the largest of {tuple(buckets)}")
