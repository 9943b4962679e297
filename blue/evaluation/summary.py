"""From ranks to the numbers of evaluation.json: intervals, differences, strata.

Means are over users, of each user's mean over its targets. Intervals resample users.
Differences are paired.
"""

import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from blue.evaluation import methods, metrics

METRICS = {"ndcg@10": "NDCG@10", "recall@10": "Recall@10", "mrr": "MRR"}
POPULARITY = ("head", "mid", "tail")  # thirds of the training interactions
LENGTHS = {  # history lengths: name -> the first
    **{"0": 0, "1-2": 1, "3-4": 3, "5-9": 5, "10-19": 10},
    **{"20-49": 20, "50-99": 50, "100+": 100},
}


class Ranked(NamedTuple):
    """The metrics of every method under one protocol, a number for each row."""

    rows: Int[np.ndarray, " U"]  # which of the cohort's
    users: Int[np.ndarray, " U"]  # of each
    values: dict[str, dict[str, Float[np.ndarray, " U"]]]  # method -> metric -> row
    facts: dict[str, Any]  # of the protocol, for the result
    ties: dict[str, float] = {}  # method -> share of rows whose target is tied


def summarise(
    protocols: Mapping[str, Ranked], *, resamples: int, seed: int
) -> dict[str, Any]:
    """`protocols`, `methods`, `differences`, `half_widths` and `ties` of the result.

    A difference has its minimum detectable difference, `mdd`. A half width is that of
    its interval.
    """
    result: dict[str, Any] = {
        "protocols": {},
        "methods": {},
        "differences": [],
        "half_widths": {},
        "ties": {},
    }
    for protocol, ranked in protocols.items():
        by_method, differences = intervals_of(
            ranked,
            methods.pairs(list(ranked.values)),
            metric_names=list(METRICS),
            resamples=resamples,
            seed=seed,
        )
        for method, found in by_method.items():
            result["methods"].setdefault(method, {})[protocol] = found
        for d in differences:
            result["differences"].append(
                {"a": d["a"], "b": d["b"], "protocol": protocol, **d}
            )
            row = result["half_widths"].setdefault(f"{d['a']} - {d['b']}", {})
            width = (d["high"] - d["low"]) / 2
            row.setdefault(protocol, {})[d["metric"]] = width
        users = len(np.unique(ranked.users))
        counts = {"users": users, "targets": len(ranked.users)}
        result["protocols"][protocol] = ranked.facts | counts
        if ranked.ties:
            result["ties"][protocol] = ranked.ties
    return result


def intervals_of(
    ranked: Ranked,
    pairs: Sequence[tuple[str, str]],
    *,
    metric_names: Sequence[str],
    resamples: int,
    seed: int,
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Each method's metrics with intervals, and the paired differences of `pairs`."""
    values = ranked.values
    keys = [(name, metric) for name in values for metric in metric_names]
    table = [values[name][metric] for name, metric in keys]
    of_pairs = [(a, b, metric) for a, b in pairs for metric in metric_names]
    table += [values[a][metric] - values[b][metric] for a, b, metric in of_pairs]
    means = metrics.user_means(np.stack(table), ranked.users)
    found = metrics.bootstrap_intervals(means, resamples=resamples, seed=seed)
    by_method: dict[str, dict[str, Any]] = {}
    for (name, metric), interval in zip(keys, found, strict=False):
        by_method.setdefault(name, {})[metric] = interval._asdict()
    detectable = metrics.minimum_detectable(means[len(keys) :])
    rows = zip(of_pairs, found[len(keys) :], detectable.tolist(), strict=True)
    differences = [
        {"a": a, "b": b, "metric": metric, **interval._asdict(), "mdd": mdd}
        for (a, b, metric), interval, mdd in rows
    ]
    return by_method, differences


def popularity_strata(
    item_counts: Int[np.ndarray, " items"], targets: Int[np.ndarray, " U"]
) -> list[str]:
    """Whether each target is head, mid or tail: a third of all training interactions.

    The most popular items that make up the first third are the head. Items of equal
    count go by their number.
    """
    order = np.argsort(-item_counts, kind="stable")
    before = np.cumsum(item_counts[order]) - item_counts[order]
    third = np.empty(len(order), np.int64)
    third[order] = np.minimum(3 * before // max(int(item_counts.sum()), 1), 2)
    third[item_counts == 0] = 2
    return [POPULARITY[i] for i in third[targets].tolist()]


def length_strata(lengths: Sequence[int]) -> list[str]:
    """The range of LENGTHS that each history falls into."""
    names, starts = list(LENGTHS), list(LENGTHS.values())
    return [names[bisect.bisect_right(starts, length) - 1] for length in lengths]


def stratify(
    ranked: Ranked,
    labels: Sequence[str],
    *,
    names: Iterable[str],
    resamples: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """NDCG@10 of every method on each part of the rows, and the key differences.

    A part is the rows with one of `names` as their label; `labels` has one for each row
    of `ranked`. A part of fewer than two users is left out.
    """
    strata: dict[str, dict[str, Any]] = {}
    for label in names:
        here = np.array([text == label for text in labels])
        users = ranked.users[here]
        if len(np.unique(users)) < 2:
            continue
        values = {
            name: {"ndcg@10": found["ndcg@10"][here]}
            for name, found in ranked.values.items()
        }
        by_method, differences = intervals_of(
            Ranked(ranked.rows[here], users, values, {}),
            methods.existing(methods.KEY_PAIRS, values),
            metric_names=["ndcg@10"],
            resamples=resamples,
            seed=seed,
        )
        strata[label] = {
            "users": len(np.unique(users)),
            "targets": len(users),
            "methods": by_method,
            "differences": differences,
        }
    return strata


def all_strata(
    ranked: Mapping[str, Ranked],
    item_counts: Int[np.ndarray, " items"],
    targets: Int[np.ndarray, " U"],
    lengths: Sequence[int],
    *,
    resamples: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """`stratify` by the target's popularity, and by history length: kind -> protocol.

    `targets` and `lengths` are of the whole cohort. History length for the first
    protocol only.
    """
    kinds = {
        "popularity": (popularity_strata(item_counts, targets), POPULARITY),
        "history_length": (length_strata(lengths), tuple(LENGTHS)),
    }
    first = next(iter(ranked))
    return {
        kind: {
            protocol: stratify(
                of_protocol,
                [labels[row] for row in of_protocol.rows.tolist()],
                names=names,
                resamples=resamples,
                seed=seed,
            )
            for protocol, of_protocol in ranked.items()
            if kind == "popularity" or protocol == first
        }
        for kind, (labels, names) in kinds.items()
    }
