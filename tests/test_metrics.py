"""Ranking metrics, intervals and text statistics against numbers worked by hand."""

import time

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, R, nDCG

from blue import metrics


def test_rank_by_hand_is_pessimistic():
    scores = np.array(
        [
            [0.5, 0.1, 0.2, 0.3],  # best
            [0.2, 0.1, 0.5, 0.3],  # two better
            [0.2, 0.2, 0.2, 0.1],  # two equal: both go before the target
            [0.0, 0.0, 0.0, 0.0],  # collapsed encoder: last
        ]
    )
    assert metrics.rank_of_target(scores).tolist() == [1, 3, 3, 4]
    assert metrics.tie_share(scores) == 0.5


def test_nan_counts_against_the_target():
    nan, inf = np.nan, np.inf
    scores = np.array(
        [
            [nan, 0.1, 0.2],  # the target's: last
            [0.5, nan, 0.2],  # another's: ahead of the target
            [nan, nan, nan],
            [inf, inf, 0.0],
            [-inf, 0.0, -inf],
        ]
    )
    assert metrics.rank_of_target(scores).tolist() == [3, 2, 3, 2, 3]


def test_metrics_by_hand():
    ranks = np.array([1, 2, 3, 10, 11, 100])
    expected = [1, 1 / np.log2(3), 0.5, 1 / np.log2(11), 0, 0]
    np.testing.assert_allclose(metrics.ndcg(ranks, k=10), expected)
    assert metrics.recall(ranks, k=10).tolist() == [1, 1, 1, 1, 0, 0]
    np.testing.assert_allclose(metrics.mrr(ranks), [1, 0.5, 1 / 3, 0.1, 1 / 11, 0.01])


def test_chance_values_with_99_negatives():
    by_name = metrics.ranking_metrics(np.arange(1, 101))
    assert by_name["ndcg@10"].mean() == pytest.approx(0.0454, abs=5e-5)
    assert by_name["recall@10"].mean() == pytest.approx(0.10)
    scores = np.random.default_rng(0).random((20_000, 100))
    sampled = metrics.ranking_metrics(metrics.rank_of_target(scores))
    assert sampled["ndcg@10"].mean() == pytest.approx(0.0454, abs=0.004)
    assert metrics.ndcg(np.arange(1, 10), k=9).mean() == pytest.approx(0.473, abs=5e-4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), levels=st.sampled_from([2, 5, 1000]))
def test_equals_ir_measures(seed, levels):
    """Few levels give many ties; the reference breaks them by the higher id."""
    scores = np.random.default_rng(seed).integers(0, levels, (8, 30)).astype(float)
    qrels = {str(u): {"a_target": 1} for u in range(8)}
    runs = {
        str(u): {"a_target" if i == 0 else f"b{i}": row[i] for i in range(30)}
        for u, row in enumerate(scores)
    }
    ours = metrics.ranking_metrics(metrics.rank_of_target(scores))
    measures = {nDCG @ 10: "ndcg@10", R @ 10: "recall@10", RR: "mrr"}
    lines = list(ir_measures.iter_calc(list(measures), qrels, runs))
    assert len(lines) == 8 * len(measures)
    for line in lines:
        key = measures[line.measure]
        assert line.value == pytest.approx(ours[key][int(line.query_id)], abs=1e-9)


def test_bootstrap_matches_the_normal_interval():
    values = np.random.default_rng(0).normal(2.0, 1.0, 1000)
    mean, low, high = metrics.bootstrap_interval(values, resamples=4000, seed=0)
    half = 1.96 * values.std() / np.sqrt(1000)
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(mean - half, abs=0.1 * half)
    assert high == pytest.approx(mean + half, abs=0.1 * half)


def test_bootstrap_is_paired_and_shared_between_rows():
    rng = np.random.default_rng(1)
    a = rng.random(300)
    rows = np.stack([a, a + 0.25, rng.random(300)])
    together = metrics.bootstrap_intervals(
        np.stack([*rows, rows[0] - rows[2]]), resamples=500, seed=3
    )
    for row, interval in zip([*rows, rows[0] - rows[2]], together, strict=True):
        alone = metrics.bootstrap_interval(row, resamples=500, seed=3)
        np.testing.assert_allclose(alone, interval)
    # the same draws: adding a constant to every user moves the interval rigidly
    np.testing.assert_allclose(np.subtract(together[1], together[0]), 0.25)
    constant = metrics.bootstrap_interval(rows[1] - rows[0], resamples=500, seed=3)
    np.testing.assert_allclose(constant, 0.25)
    other = metrics.bootstrap_interval(a, resamples=500, seed=4)
    assert other.low != together[0].low


def test_bootstrap_is_fast_enough_for_the_full_table():
    values = np.random.default_rng(0).random((30, 2000))
    start = time.process_time()
    metrics.bootstrap_intervals(values, resamples=10_000, seed=0)
    assert time.process_time() - start < 4.0  # usually half a second


def test_wilson_interval_by_hand():
    np.testing.assert_allclose(
        metrics.share_interval(5, 10), [0.5, 0.2366, 0.7634], atol=5e-5
    )
    assert metrics.share_interval(0, 10).low == 0.0
    assert metrics.share_interval(0, 10).high == pytest.approx(0.2775, abs=5e-5)
    assert metrics.share_interval(10, 10).high == pytest.approx(1.0)
