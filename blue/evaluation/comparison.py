"""The comparison: every method as a ranker, ranked under every protocol."""

import functools
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float

from blue.evaluation import baselines, methods, metrics, protocols, ranking
from blue.evaluation.cohort import Cohort, partner_rows
from blue.evaluation.methods import Task
from blue.evaluation.protocols import Candidates, Ranker
from blue.evaluation.summary import Ranked
from blue.inference.embed import Embed
from blue.text import queries
from blue.text.queries import QueryFormat
from blue.workdir.allowed import DRAWN_PROTOCOLS

logger = logging.getLogger("blue")


class Space(NamedTuple):
    """An encoder with its query format and the vectors of the catalogue."""

    name: str
    embed: Embed
    query_format: QueryFormat
    item_table: Float[np.ndarray, "items E"]  # unit vectors, memory-mapped
    weights: int | None = None  # `fingerprint` of the encoder's, if it is our own


# --- methods


def rule_profiles(task: Task) -> dict[str, list[str]]:
    """Profiles by rule: method -> one a row."""
    written = {m.name: m.profile(task) for m in methods.METHODS if m.profile}
    return {name: texts for name, texts in written.items() if texts is not None}


def rankers_without_encoder(task: Task) -> list[Ranker]:
    """The methods that score items by themselves."""
    made = [(m.name, m.ranker(task)) for m in methods.METHODS if m.ranker]
    return [ranker._replace(names=(name,)) for name, ranker in made if ranker]


def rankers_of_space(
    task: Task, profiles: Mapping[str, Sequence[str]], space: Space
) -> list[Ranker]:
    """Rankers of all variants with vectors: mean items and texts, raw and centred.

    Centred ones subtract the mean item vector of the training pool from items, and the
    mean query of their form from profiles. What all texts of a form share does not
    distinguish users. `profiles` has one text a row for each method that writes them.
    """
    cohort, table = task.cohort, space.item_table
    partners = partner_rows(cohort.users, seed=task.settings.seed)
    texts = methods.query_texts(
        space.query_format, cohort.histories, profiles, partners
    )
    of_texts = dict(zip(texts, queries.embed_texts(space.embed, texts), strict=True))
    if not all(np.isfinite(v).all() for v in of_texts.values()):
        logger.warning("%s gave non-finite vectors: they rank last", space.name)
    centre = baselines.mean_vector(table, task.examples.pool)
    raw, centred = {}, {}
    for method in methods.METHODS:
        if method.vectors is not None:
            raw[method.name] = method.vectors(task, table, None)
            if method.centred:
                shifted = method.vectors(task, table, centre)
                centred[method.name + methods.CENTRED] = shifted
    for name in profiles:
        if methods.method_of(name).centred:
            style = of_texts[name].mean(axis=0)
            centred[name + methods.CENTRED] = protocols.unit(of_texts[name] - style)
    raw |= of_texts
    return [
        protocols.by_cosine([*raw], np.stack([*raw.values()]), table),
        protocols.by_cosine(
            [*centred], np.stack([*centred.values()]), table, centre=centre
        ),
    ]


# --- protocols


def draw_protocols(
    directory: epath.Path, task: Task, names: Sequence[str], *, write: bool
) -> dict[str, Candidates]:
    """Candidates of all test rows for the drawn protocols of `names`, from files.

    The protocol of the same category needs a column with the items' category.
    """
    examples, settings = task.examples, task.settings
    category = task.log.columns.get(settings.category)
    drawn = {}
    for protocol in names:
        of_category = protocol == "1+99-category"
        if protocol not in DRAWN_PROTOCOLS or of_category and category is None:
            continue
        labels = list(category or ()) if of_category else None
        seed, num = settings.seed, settings.negatives
        facts = [examples.fingerprint, protocol, seed, num, protocols.POWER, labels]
        drawn[protocol] = protocols.fixed_candidates(
            directory / f"{protocol}.npz",
            hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
            functools.partial(
                protocols.draw_candidates,
                examples,
                examples.test,
                protocol=protocol,
                seed=seed,
                num=num,
                category=labels,
            ),
            write=write,
        )
    return drawn


def rank_drawn(
    cohort: Cohort, candidates: Candidates, rankers: Sequence[Ranker]
) -> Ranked:
    """Every method's metrics of the rows of `cohort` that have candidates."""
    known = np.isin(candidates.rows, cohort.rows)
    rows = np.searchsorted(cohort.rows, candidates.rows[known])
    items = candidates.items[known]
    values, ties = {}, {}
    for ranker in rankers if len(rows) else ():
        found = protocols.rank_candidates(ranker, rows, items)
        for name, ranks, tied in zip(ranker.names, *found, strict=True):
            values[name] = metrics.ranking_metrics(ranks)
            ties[name] = float(tied.mean())
    facts = {
        "candidates": items.shape[1],
        "chance": metrics.chance_metrics(np.array([items.shape[1]])),
        "candidates_sha256": candidates.sha256,
        "left_out": len(cohort.rows) - len(rows),
    }
    return Ranked(rows, cohort.users[rows], values, facts, ties)


def rank_catalogue(
    task: Task, rankers: Sequence[Ranker], mesh: Mesh
) -> tuple[dict[str, Ranked], dict[str, dict[str, float]]]:
    """`full` and the expected protocols in one pass, and each method's recommendations.

    The expected ones replace negatives drawn uniformly or by popularity, with
    replacement, from the same items.
    """
    cohort, num = task.cohort, task.settings.negatives
    examples, counts = task.examples, task.examples.item_counts
    weights = np.stack([counts > 0, protocols.popularity_weights(counts)], axis=1)
    targets = protocols.make_targets(cohort.split, cohort.rows, examples.title_group)
    sizes = len(counts) + 1 - np.array([len(owned) for owned in targets.own])
    chance = metrics.chance_metrics(np.array([num + 1]))
    facts = {
        "full": {
            "candidates": float(sizes.mean()),
            "chance": metrics.chance_metrics(sizes),
        },
        "expected-1+99": {"candidates": num + 1, "chance": chance},
        "expected-1+99-popularity": {"candidates": num + 1, "chance": chance},
    }
    rows = np.arange(len(cohort.rows))
    ranked = {
        name: Ranked(rows, cohort.users, {}, of_protocol, {})
        for name, of_protocol in facts.items()
    }
    full, uniform, popularity = ranked.values()
    recommended = {}
    for ranker in rankers:
        if ranker.cosines:
            found = ranking.rank_all(ranker, targets, weights, mesh)
        else:
            found = protocols.rank_all(ranker, targets, weights)
        for name, ranks, tied, shares, top in zip(ranker.names, *found, strict=True):
            full.values[name] = metrics.ranking_metrics(ranks)
            full.ties[name] = float(tied.mean())
            for column, expected in enumerate((uniform, popularity)):
                expected.values[name] = metrics.expected_metrics(
                    shares[:, column], num=num
                )
            recommended[name] = protocols.recommended(top, counts)
    return ranked, recommended


def rank(
    task: Task,
    drawn: Mapping[str, Candidates],
    rankers: Sequence[Ranker],
    names: Sequence[str],
    mesh: Mesh,
) -> tuple[dict[str, Ranked], dict[str, dict[str, float]]]:
    """Every protocol of `names` that ranks two users or more, in that order.

    Also each method's recommendations, empty unless a protocol needs the whole
    catalogue.
    """
    ranked: dict[str, Ranked] = {}
    recommended: dict[str, dict[str, float]] = {}
    num = task.settings.negatives
    if set(names) - set(DRAWN_PROTOCOLS):
        ranked, recommended = rank_catalogue(task, rankers, mesh)
    for name, candidates in drawn.items():
        ranked[name] = rank_drawn(task.cohort, candidates, rankers)
    kept = {}
    for name in names:
        if name in ranked and len(np.unique(ranked[name].users)) >= 2:
            kept[name.replace("1+99", f"1+{num}")] = ranked[name]
        elif name in ranked:
            logger.warning("%s: fewer than two users have %d candidates", name, num)
    return kept, recommended
