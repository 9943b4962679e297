"""A curve over the number of events, by hand."""

import numpy as np
import pytest

from blue.evaluation import cohort as cohorts
from blue.evaluation import cold_start, methods, metrics
from blue.text import queries
from blue.text.templates import TEMPLATES
from tests.helpers.small_world import make_split


def test_curve_by_hand():
    """The target's words are in the newest event: one event is as good as all."""
    titles = ["red", "green", "blue", "red two", "green two", "blue two"]
    split = make_split(
        [[1, 0], [2, 1], [0, 2]], [3, 4, 5], [0, 1, 2], [[4, 5], [3, 5], [3, 4]]
    )
    cohort = cohorts.choose_cohort(split, titles, limit=0)
    short = cold_start.cohorts(cohort, titles, (0, 1, 2))

    def embed(texts):
        rows = [[t.count(w) + 1e-3 for w in ("red", "green", "blue")] for t in texts]
        vectors = np.array(rows, np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    profiles = {
        k: {"base": ["red"] * 3, "blue": [" ".join(h) for h in c.histories]}
        for k, c in short.items()
    }
    points = cold_start.curve(
        short,
        profiles,
        embed=embed,
        query_format=queries.QueryFormat(TEMPLATES["short"], "", 10, len, 999),
        item_table=embed(titles),
        resamples=50,
        seed=0,
    )
    assert [p["events"] for p in points] == [0, 1, 2]
    assert all(p["users"] == p["targets"] == 3 for p in points)
    mrr = [p["methods"]["blue"]["mrr"]["mean"] for p in points]
    assert mrr == pytest.approx([1 / 3, 1.0, 0.5])  # nothing known: last of three
    assert points[1]["methods"]["base"]["mrr"]["mean"] == pytest.approx(
        metrics.mrr(np.array([1, 3, 3])).mean(), abs=0.1
    )
    pairs = [(d["a"], d["b"]) for d in points[1]["differences"]]
    assert set(pairs) <= set(methods.HEADLINES) and ("blue", "base") in pairs
