"""Metrics of a ranking: pure functions over host arrays.

Ranks, NDCG, recall and MRR of one target among candidates, with intervals by a
bootstrap over users. Metrics of the text of profiles are in panel.py. Protocol: BLUE,
https://arxiv.org/abs/2605.06981, section "Evaluation"; the paper does not define ties
and intervals, so they are defined here.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

DETECTABLE = 2.8  # standard errors: the normal quantiles of .975 and .80, added


class Interval(NamedTuple):
    """A mean and the ends of its 95% interval, in the unit of the values."""

    mean: float
    low: float
    high: float


def rank_of_target(
    scores: Float[np.ndarray, "*R U I"], *, tolerance: float = 0.0
) -> Int[np.ndarray, "*R U"]:
    """Rank of the target, column 0, among the candidates of each user.  In [1, I].

    Pessimistic: 1 + the others that do not score less by more than `tolerance`. So a
    collapsed encoder (all scores equal) ranks its targets last. A NaN of the target or
    of another candidate counts against the target.
    """
    return 1 + (~(scores[..., 1:] < scores[..., :1] - tolerance)).sum(axis=-1)


def tied_targets(
    scores: Float[np.ndarray, "*R U I"], *, tolerance: float = 0.0
) -> Bool[np.ndarray, "*R U"]:
    """Whether another candidate has the target's score (column 0) to `tolerance`."""
    distance = np.abs(scores[..., 1:] - scores[..., :1])
    return np.any(distance <= tolerance, axis=-1)


def ndcg(ranks: Int[np.ndarray, " U"], *, k: int) -> Float[np.ndarray, " U"]:
    """NDCG@k with one relevant item: 1/log2(1 + rank) up to rank k, else 0.  [0, 1].

    Jarvelin and Kekalainen 2002, https://doi.org/10.1145/582415.582418: with one
    relevant item the ideal DCG is 1.
    """
    return np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)


def recall(ranks: Int[np.ndarray, " U"], *, k: int) -> Float[np.ndarray, " U"]:
    """Recall@k with one relevant item (the hit rate): 1 up to rank k, else 0."""
    return (ranks <= k).astype(np.float64)


def mrr(ranks: Int[np.ndarray, " U"]) -> Float[np.ndarray, " U"]:
    """Reciprocal rank, without a cut.  In (0, 1]."""
    return 1.0 / ranks


def ranking_metrics(
    ranks: Int[np.ndarray, " U"],
) -> dict[str, Float[np.ndarray, " U"]]:
    """The metrics the evaluation reports, per user, under the names it uses."""
    return {
        "ndcg@10": ndcg(ranks, k=10),
        "recall@10": recall(ranks, k=10),
        "mrr": mrr(ranks),
    }


def expected_metrics(
    share: Float[np.ndarray, " U"], *, num: int
) -> dict[str, Float[np.ndarray, " U"]]:
    """`ranking_metrics` in expectation over `num` negatives drawn with replacement.

    `share`, in [0, 1], is the chance that one draw scores at or above the target. So
    the rank is 1 + Binomial(num, share): Krichene and Rendle 2020, section 4,
    https://doi.org/10.1145/3394486.3403226. Nothing is drawn, so there is no sampling
    noise.
    """
    above = np.arange(num + 1)
    ways = np.array([math.comb(num, int(k)) for k in above], np.float64)
    q = np.asarray(share, np.float64)[:, None]
    chances = ways * q**above * (1.0 - q) ** (num - above)  # [U num+1]
    by_rank = ranking_metrics(1 + above)
    return {key: chances @ values for key, values in by_rank.items()}


def chance_metrics(sizes: Int[np.ndarray, " U"]) -> dict[str, float]:
    """Means of `ranking_metrics` where all ranks from 1 to sizes[u] are as likely."""
    sums = ranking_metrics(np.arange(1, int(sizes.max()) + 1))
    return {
        key: float((np.cumsum(values)[sizes - 1] / sizes).mean())
        for key, values in sums.items()
    }


def gini(counts: Int[np.ndarray, " items"]) -> float:
    """Gini coefficient of counts: 0 where all are equal, near 1 where one has all.

    Half the mean absolute difference of two items over the mean; 0 without any count.
    """
    ordered = np.sort(counts).astype(np.float64)
    num, total = len(ordered), ordered.sum()
    if total == 0:
        return 0.0
    places = 2 * np.arange(1, num + 1) - num - 1
    return float((places * ordered).sum() / (num * total))


def user_means(
    values: Float[np.ndarray, "N U"], users: Int[np.ndarray, " U"]
) -> Float[np.ndarray, "N users"]:
    """Each user's mean over its columns, users in ascending order.

    A user counts once however many targets it has; resampling these means is the
    cluster bootstrap by user.
    """
    distinct, place = np.unique(users, return_inverse=True)
    sums = [np.bincount(place, row, len(distinct)) for row in values]
    return np.stack(sums) / np.bincount(place)


def minimum_detectable(values: Float[np.ndarray, "N users"]) -> Float[np.ndarray, " N"]:
    """Smallest mean difference each row of paired differences would likely show.

    80% power in a two-sided test at 5%: (1.96 + 0.84) standard errors. Cohen 1988,
    section 2.4. Needs two users or more.
    """
    errors = values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
    return DETECTABLE * errors


def bootstrap_intervals(
    values: Float[np.ndarray, "N U"], *, resamples: int, seed: int
) -> list[Interval]:
    """Mean over users of each row with its 95% percentile bootstrap interval.

    Users are drawn with replacement. The draws depend on (U, resamples, seed) alone and
    are shared by all rows. So a row `a - b` gives the paired interval of a difference,
    whether it is computed together with `a` and `b` or by itself. Efron and Tibshirani
    1993, section 13.3.
    """
    num_users = values.shape[1]
    assert num_users > 0 and resamples > 0
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, len(values)))
    # A chunk's counts stay in the CPU's cache: 10,000 x 2,000 draws take half a second.
    chunk = max(1, 262_144 // num_users)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(num_users, size=(rows, num_users))
        drawn += np.arange(rows)[:, None] * num_users
        counts = np.bincount(drawn.ravel(), minlength=rows * num_users)
        counts = counts.reshape(rows, num_users).astype(np.float64)
        means[start : start + rows] = counts @ values.T / num_users
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return [
        Interval(float(m), float(lo), float(hi))
        for m, lo, hi in zip(values.mean(axis=1), low, high, strict=True)
    ]


def bootstrap_interval(
    values: Float[np.ndarray, " U"], *, resamples: int, seed: int
) -> Interval:
    """`bootstrap_intervals` of one row; of a difference: pass `a - b`."""
    return bootstrap_intervals(values[None], resamples=resamples, seed=seed)[0]


def share_interval(num_true: int, num: int) -> Interval:
    """A share and its 95% Wilson score interval, which stays honest at 0 and at 1.

    Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953.
    """
    assert 0 <= num_true <= num and num > 0
    z = 1.959963984540054
    share = num_true / num
    centre = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num)
    half *= float(np.sqrt(share * (1 - share) / num + z * z / (4 * num * num)))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))
