"""Pairs of texts in the encoder's programs."""

import numpy as np

from blue.stages import train_encoder
from blue.training.contrastive import row_counts


def test_any_batch_of_pairs_fits_the_last_of_its_programs():
    length, most, rng = 32, 12, np.random.default_rng(0)
    for seed in range(20):
        draw = lambda least, most: rng.integers(4, 99, rng.integers(least, most + 1))
        queries = [draw(seed + 1, length).tolist() for _ in range(9)]
        items = [draw(most if seed % 2 else 1, most).tolist() for _ in range(9)]
        counts = row_counts(9, length, most, shards=2)
        rows, places = train_encoder.pack_pairs(
            queries, items, length=length, counts=counts, pad_id=0
        )
        ends = rows.ends.reshape(-1)[places]
        row = places // rows.ends.shape[1]
        last = [text[-1] for text in (*queries, *items)]
        assert rows.tokens[row, ends].tolist() == last
