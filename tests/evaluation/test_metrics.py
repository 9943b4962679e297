"""Ranking metrics, intervals and text statistics against numbers worked by hand."""

import time

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, R, nDCG

from blue.evaluation import metrics


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
    assert metrics.tied_targets(scores).tolist() == [False, False, True, True]
    near = metrics.rank_of_target(scores, tolerance=0.15)
    assert near.tolist() == [1, 4, 4, 4]  # .1 is no longer clearly less than .2
    near = metrics.tied_targets(scores, tolerance=0.15)
    assert near.tolist() == [False, True, True, True]


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


def test_expected_metrics_by_hand():
    """Two draws, each above with chance 1/2: ranks 1, 2, 3 with chances 1/4, 1/2, 1/4.

    The share may be 0 or 1 as well: first, and last.
    """
    found = metrics.expected_metrics(np.array([0.5, 0.0, 1.0]), num=2)
    middle = 0.25 + 0.5 / np.log2(3) + 0.25 / 2
    np.testing.assert_allclose(found["ndcg@10"], [middle, 1.0, 0.5])
    np.testing.assert_allclose(found["recall@10"], 1.0)
    np.testing.assert_allclose(found["mrr"], [0.25 + 0.25 + 0.25 / 3, 1.0, 1 / 3])


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0, 1), num=st.integers(1, 99))
def test_expected_mrr_is_its_closed_form(share, num):
    """E[1 / (1 + Binomial(n, q))] = (1 - (1 - q)^(n + 1)) / ((n + 1) q)."""
    found = metrics.expected_metrics(np.array([share]), num=num)
    closed = 1.0
    if share > 1e-9:
        closed = -np.expm1((num + 1) * np.log1p(-share)) if share < 1 else 1.0
        closed /= (num + 1) * share
    assert found["mrr"][0] == pytest.approx(closed, rel=1e-6)


def test_expectation_is_the_mean_over_many_draws():
    rng = np.random.default_rng(0)
    shares = np.array([0.01, 0.08, 0.3])
    ranks = 1 + rng.binomial(99, shares[:, None], (3, 20_000))
    expected = metrics.expected_metrics(shares, num=99)
    for row, of_share in enumerate(ranks):
        for key, values in metrics.ranking_metrics(of_share).items():
            error = values.std() / np.sqrt(20_000)
            assert abs(values.mean() - expected[key][row]) <= 4 * error + 1e-3


def test_chance_is_the_mean_over_all_ranks():
    found = metrics.chance_metrics(np.array([100, 100]))
    assert found["ndcg@10"] == pytest.approx(0.0454, abs=5e-5)
    by_size = [metrics.ranking_metrics(np.arange(1, n + 1)) for n in (3, 50)]
    for key, value in metrics.chance_metrics(np.array([3, 50])).items():
        assert value == pytest.approx(np.mean([v[key].mean() for v in by_size]))


def test_gini_by_hand():
    assert metrics.gini(np.array([5, 5, 5, 5])) == 0.0
    assert metrics.gini(np.array([0, 0, 0, 9])) == pytest.approx(3 / 4)
    counts = np.array([4, 1, 1, 0])
    differences = np.abs(counts[:, None] - counts[None])
    assert metrics.gini(counts) == pytest.approx(differences.mean() / 2 / counts.mean())
    assert metrics.gini(np.zeros(3, np.int64)) == 0.0


def test_a_user_counts_once_however_many_targets_it_has():
    values = np.array([[1.0, 0.0, 0.5, 0.3, 0.1]])
    users = np.array([7, 7, 2, 9, 9])
    np.testing.assert_allclose(metrics.user_means(values, users), [[0.5, 0.5, 0.2]])


def test_minimum_detectable_difference_is_found_in_four_of_five_experiments():
    rng = np.random.default_rng(0)
    one = rng.normal(0.0, 0.3, (1, 500))
    (mdd,) = metrics.minimum_detectable(one)
    assert mdd == pytest.approx(2.8 * one.std(ddof=1) / np.sqrt(500))
    trials = rng.normal(mdd, 0.3, (4000, 500))
    errors = trials.std(axis=1, ddof=1) / np.sqrt(500)
    power = (trials.mean(axis=1) > 1.96 * errors).mean()
    assert power == pytest.approx(0.8, abs=0.06)


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
