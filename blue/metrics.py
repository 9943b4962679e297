"""Numbers that judge a ranking: pure functions over host arrays.

Ranks, NDCG, recall and MRR of one target among candidates, and their intervals by a
bootstrap over users. What judges the text of profiles is in panel.py.
Protocol: BLUE, https://arxiv.org/abs/2605.06981, section "Evaluation"; the paper is
silent about ties and intervals, so both are defined here.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Interval(NamedTuple):
    """A mean and the ends of its 95% interval, in the unit of the values."""

    mean: float
    low: float
    high: float


def rank_of_target(scores: Float[np.ndarray, "U I"]) -> Int[np.ndarray, " U"]:
    """Rank of the target, column 0, among the candidates of each user.  In [1, I].

    Pessimistic: 1 + the others that do not score strictly less, so that a collapsed
    encoder (all scores equal) ranks its targets last.  A NaN, be it the target's or
    another candidate's, is never less and so counts against the target.
    """
    return 1 + (~(scores[:, 1:] < scores[:, :1])).sum(axis=1)


def tie_share(scores: Float[np.ndarray, "U I"]) -> float:
    """Share of users whose target (column 0) has another candidate's score.  [0, 1]."""
    return float((scores[:, 1:] == scores[:, :1]).any(axis=1).mean())


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


def bootstrap_intervals(
    values: Float[np.ndarray, "N U"], *, resamples: int, seed: int
) -> list[Interval]:
    """Mean over users of each row with its 95% percentile bootstrap interval.

    Users are drawn with replacement.  The draws depend on (U, resamples, seed) alone
    and are shared by all rows: a row `a - b` gives the paired interval of a difference,
    whether it is computed here together with `a` and `b` or by itself.
    Efron and Tibshirani 1993, section 13.3.
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
