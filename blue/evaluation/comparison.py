"""What is compared with what: every method as a ranker, ranked under every protocol."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float

from blue.data.examples import Examples, history
from blue.data.log import Log
from blue.evaluation import baselines, metrics, protocols, ranking
from blue.evaluation.cohort import Cohort, partner_rows
from blue.evaluation.protocols import Candidates, Ranker
from blue.evaluation.summary import Ranked
from blue.inference.embed import Embed
from blue.text import queries
from blue.text.queries import QueryFormat

logger = logging.getLogger("blue")

DRAWN = ("1+99", "1+99-popularity", "1+99-category")
CENTRED = ("base", "blue")  # profiles also ranked without the style of their form


class Space(NamedTuple):
    """An encoder at work: what it is asked, and where it puts the catalogue."""

    name: str
    embed: Embed
    query_format: QueryFormat
    item_table: Float[np.ndarray, "items E"]  # unit vectors, memory-mapped
    weights: int | None = None  # `fingerprint` of the encoder's, if it is our own


# --- methods


def rule_profiles(
    log: Log, examples: Examples, cohort: Cohort, *, recent: int, template: str
) -> dict[str, list[str]]:
    """Profiles nobody learned to write: method -> one a row.

    `recent` is how many popular titles the constant profile has. It is also how many
    items of the history the pseudo item is made of. Without a `template` there is none.
    """
    popular = baselines.constant_profile(log.titles, examples.item_counts, num=recent)
    profiles = {"constant": [popular] * len(cohort.rows)}
    if template:
        items = [history(cohort.split, row)[0][-recent:] for row in cohort.rows]
        profiles["pseudo_item"] = baselines.pseudo_items(template, log.columns, items)
    return profiles


def rankers_without_encoder(
    log: Log,
    examples: Examples,
    cohort: Cohort,
    *,
    seed: int,
    ease_l2: float,
    ease_max_items: int,
) -> list[Ranker]:
    """Chance and popularity; EASE unless training users have too many items."""
    counts = examples.item_counts
    rankers = [baselines.trivial(cohort.example_ids, counts, seed=seed)]
    if (num := len(examples.pool)) > ease_max_items:
        logger.info(
            "no EASE: %d items, evaluate.ease_max_items=%d", num, ease_max_items
        )
        return rankers
    split, rows = cohort.split, cohort.rows
    return [*rankers, baselines.ease(log, examples, split, rows, l2=ease_l2)]


def rankers_of_space(
    examples: Examples,
    cohort: Cohort,
    profiles: Mapping[str, Sequence[str]],
    space: Space,
    *,
    seed: int,
    recent: int,
) -> list[Ranker]:
    """Every method that is a vector: mean items and texts, raw and centred.

    Centred methods subtract the mean item vector of the training pool from items, and
    the mean query of their form from profiles. What all texts of a form
    share does not tell users apart.
    """
    split, rows, table = cohort.split, cohort.rows, space.item_table
    partners = partner_rows(cohort.users, seed=seed)
    texts = queries.query_texts(
        space.query_format, cohort.histories, profiles, partners
    )
    vectors = dict(zip(texts, queries.embed_texts(space.embed, texts), strict=True))
    if not all(np.isfinite(v).all() for v in vectors.values()):
        logger.warning("%s gave non-finite vectors: they rank last", space.name)
    centre = baselines.mean_vector(table, examples.pool)
    raw, centred = {}, {}
    for name, newest in (("mean_items", None), ("mean_recent", recent)):
        raw[name], centred[f"{name}_centred"] = (
            baselines.history_vectors(split, rows, table, newest=newest, centre=c)
            for c in (None, centre)
        )
    for name in CENTRED:
        if name in vectors:
            style = vectors[name].mean(axis=0)
            centred[f"{name}_centred"] = protocols.unit(vectors[name] - style)
    raw |= vectors
    return [
        protocols.by_cosine([*raw], np.stack([*raw.values()]), table),
        protocols.by_cosine(
            [*centred], np.stack([*centred.values()]), table, centre=centre
        ),
    ]


# --- protocols


def draw(
    directory: epath.Path,
    examples: Examples,
    names: Sequence[str],
    *,
    category: Sequence[str] | None,
    seed: int,
    num: int,
    write: bool,
) -> dict[str, Candidates]:
    """Candidates of all test rows for the drawn protocols of `names`, from files.

    Without `category`, one an item, there is no protocol of the same category.
    """
    drawn = {}
    for protocol in names:
        of_category = protocol == "1+99-category"
        if protocol not in DRAWN or of_category and category is None:
            continue
        labels = list(category or ()) if of_category else None
        facts = [examples.fingerprint, protocol, seed, num, protocols.POWER, labels]
        drawn[protocol] = protocols.fixed_candidates(
            directory / f"{protocol}.npz",
            hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
            lambda protocol=protocol, labels=labels: protocols.draw_candidates(
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
    examples: Examples,
    cohort: Cohort,
    rankers: Sequence[Ranker],
    mesh: Mesh,
    *,
    num: int,
) -> tuple[dict[str, Ranked], dict[str, dict[str, float]]]:
    """ "full" and the expected protocols in one pass, and what each method recommends.

    The expected ones stand for `num` negatives drawn uniformly or by popularity, with
    replacement, from what those protocols draw from.
    """
    counts = examples.item_counts
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
    examples: Examples,
    cohort: Cohort,
    drawn: Mapping[str, Candidates],
    rankers: Sequence[Ranker],
    names: Sequence[str],
    mesh: Mesh,
    *,
    num: int,
) -> tuple[dict[str, Ranked], dict[str, dict[str, float]]]:
    """Every protocol of `names` that ranks two users or more, in that order.

    Also what each method recommends, empty unless a protocol needs the whole catalogue.
    """
    ranked: dict[str, Ranked] = {}
    recommended: dict[str, dict[str, float]] = {}
    if set(names) - set(DRAWN):
        ranked, recommended = rank_catalogue(examples, cohort, rankers, mesh, num=num)
    for name, candidates in drawn.items():
        ranked[name] = rank_drawn(cohort, candidates, rankers)
    kept = {}
    for name in names:
        if name in ranked and len(np.unique(ranked[name].users)) >= 2:
            kept[name.replace("1+99", f"1+{num}")] = ranked[name]
        elif name in ranked:
            logger.warning("%s: fewer than two users have %d candidates", name, num)
    return kept, recommended
