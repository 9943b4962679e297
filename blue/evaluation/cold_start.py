"""The cold-start curve: how good profiles are for users with short histories.

Only the newest k events of each history are used, for writing and for ranking.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from blue.evaluation import methods, metrics, protocols, summary
from blue.evaluation.cohort import Cohort, with_newest
from blue.inference.embed import Embed
from blue.text import queries
from blue.text.queries import QueryFormat


def cohorts(
    cohort: Cohort, titles: list[str], lengths: Sequence[int]
) -> dict[int, Cohort]:
    """For each k of `lengths` the rows with k events or more, cut to the newest k.

    So every row at k is a user with at least k events, and points of the curve have
    different users. A k with fewer than two users is left out.
    """
    cut = {k: with_newest(cohort, titles, k) for k in sorted({*lengths})}
    return {k: c for k, c in cut.items() if len(np.unique(c.users)) >= 2}


def curve(
    cohorts: Mapping[int, Cohort],
    profiles: Mapping[int, Mapping[str, Sequence[str]]],
    *,
    embed: Embed,
    query_format: QueryFormat,
    item_table: Float[np.ndarray, "items E"],
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """One point a length, for evaluation.json: users, metrics, differences.

    `profiles` has, for each length, one text a row for each method. Ranked among the
    cohort's candidates: profile alone, recent history + profile, and recent history.
    """
    points = []
    for events, cohort in cohorts.items():
        known = cohort.histories
        texts = {"10_history": [queries.recent_query(query_format, h) for h in known]}
        for method, written in profiles[events].items():
            for form in (methods.ALONE, methods.RECENT):
                texts[form + method] = methods.profile_queries(
                    query_format, form, known, written
                )
        vectors = queries.embed_texts(embed, texts)
        ranker = protocols.by_cosine(tuple(texts), vectors, item_table)
        rows = np.arange(len(cohort.rows))
        ranks, _ = protocols.rank_candidates(ranker, rows, cohort.candidates)
        values = {
            method: metrics.ranking_metrics(of_method)
            for method, of_method in zip(texts, ranks, strict=True)
        }
        by_method, differences = summary.intervals_of(
            summary.Ranked(rows, cohort.users, values, {}),
            methods.existing(methods.HEADLINES, values),
            metric_names=list(summary.METRICS),
            resamples=resamples,
            seed=seed,
        )
        points.append(
            {
                "events": events,
                "users": len(np.unique(cohort.users)),
                "targets": len(rows),
                "methods": by_method,
                "differences": differences,
            }
        )
    return points


def scalars(curve: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """NDCG@10 of each method over the history's length, as TensorBoard takes it."""
    return {
        f"cold_start/{method}": {
            p["events"]: p["methods"][method]["ndcg@10"]["mean"]
            for p in curve
            if method in p["methods"]
        }
        for method in curve[0]["methods"]
    }
