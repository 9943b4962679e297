"""The table of methods: how each ranks a test user's items, and its comparisons.

A row says in one of five ways how its method uses a user's history:

    query     history -> the text that the encoder ranks items by
    vectors   history -> a vector that the encoder's item vectors are ranked by
    profile   rule -> a profile of every user, read by the encoder
    profiler  the model that writes the profiles, read by the encoder
    ranker    scores of items, without the encoder

To add a method, add its row and the function that the row names. Variants, differences,
tables and figures follow. Names of variants: 10h+NAME, the profile after recent titles;
shuffled_NAME, another user's profile, the control; NAME_centred, minus the mean of its
texts.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from blue.data.examples import Examples, history
from blue.data.log import Log
from blue.evaluation import baselines
from blue.evaluation.cohort import Cohort
from blue.evaluation.protocols import Ranker
from blue.text import queries
from blue.text.queries import QueryFormat

logger = logging.getLogger("blue")

ALONE, RECENT = "", "10h+"  # forms of a query: the profile alone, after recent titles
SHUFFLED, CENTRED = "shuffled_", "_centred"
BASE, TRAINED = "base", "blue"
# Groups of methods that the trained profile (the base one in an untrained run) is
# compared with.
RAW = "raw history"  # in both forms; the verdict of evaluation.md is about these
CONTROL = "control"  # in its form alone; the centred variant is a control, too
RIVAL = "rival"  # other profiles: the trained and the base one, in both forms


class Settings(NamedTuple):
    """The config's settings of the comparison."""

    seed: int
    negatives: int  # candidates beside the target, where they are drawn
    recent_items: int  # newest items, for methods that use only these
    category: str  # item column of protocol 1+99-category; empty: none
    pseudo_item_template: str  # empty: no pseudo item
    ease_l2: float
    ease_max_items: int


class Task(NamedTuple):
    """The data a method may use: the log, its examples, and the users to rank for."""

    log: Log
    examples: Examples
    cohort: Cohort
    settings: Settings


Table = Float[np.ndarray, "items E"]
# (task, item vectors, what to subtract from each of them) -> a vector a row [U E]
Vectors = Callable[[Task, Table, Float[np.ndarray, " E"] | None], np.ndarray]


class Method(NamedTuple):
    """A row of the table."""

    name: str
    query: Callable[[QueryFormat, list[str]], str] | None = None
    vectors: Vectors | None = None
    profile: Callable[[Task], list[str] | None] | None = None  # None: there is none
    profiler: str = ""  # base: before GRPO, trained: after it
    ranker: Callable[[Task], Ranker | None] | None = None  # None: there is none
    forms: tuple[str, ...] = (ALONE, RECENT)  # of a profile
    shuffled: tuple[str, ...] = ()  # forms that have a control
    centred: bool = False
    group: str = ""  # RAW, CONTROL, RIVAL, or in no group
    key: bool = False  # of a group: shown for every protocol


# --- the functions of the rows


def _constant(task: Task) -> list[str]:
    titles, counts = task.log.titles, task.examples.item_counts
    num = task.settings.recent_items
    popular = baselines.constant_profile(titles, counts, num=num)
    return [popular] * len(task.cohort.rows)


def _pseudo_item(task: Task) -> list[str] | None:
    template, recent = task.settings.pseudo_item_template, task.settings.recent_items
    if not template:
        return None
    split, rows = task.cohort.split, task.cohort.rows
    items = [history(split, row)[0][-recent:] for row in rows]
    return baselines.pseudo_items(template, task.log.columns, items)


def _mean_items(
    task: Task, table: Table, centre: np.ndarray | None, newest: int | None = None
) -> np.ndarray:
    split, rows = task.cohort.split, task.cohort.rows
    return baselines.history_vectors(split, rows, table, newest=newest, centre=centre)


def _mean_recent(task: Task, table: Table, centre: np.ndarray | None) -> np.ndarray:
    return _mean_items(task, table, centre, task.settings.recent_items)


def _random(task: Task) -> Ranker:
    return baselines.chance(task.cohort.example_ids, seed=task.settings.seed)


def _popular(task: Task) -> Ranker:
    return baselines.popularity(task.examples.item_counts)


def _ease(task: Task) -> Ranker | None:
    most, num = task.settings.ease_max_items, len(task.examples.pool)
    if num > most:
        logger.info("no EASE: %d items, evaluate.ease_max_items=%d", num, most)
        return None
    split, rows, l2 = task.cohort.split, task.cohort.rows, task.settings.ease_l2
    return baselines.ease(task.log, task.examples, split, rows, l2=l2)


METHODS = (
    Method("empty", query=lambda f, _: queries.profile_query(f, "")),
    Method("all_history", query=queries.history_query, group=RAW),
    Method("10_history", query=queries.recent_query, group=RAW),
    Method("constant", profile=_constant, forms=(ALONE,), group=CONTROL, key=True),
    Method(
        "pseudo_item", profile=_pseudo_item, shuffled=(ALONE,), group=CONTROL, key=True
    ),
    Method(BASE, profiler="base", shuffled=(ALONE,), centred=True),
    Method(TRAINED, profiler="trained", shuffled=(ALONE, RECENT), centred=True),
    Method("mean_items", vectors=_mean_items, centred=True, group=RAW),
    Method("mean_recent", vectors=_mean_recent, centred=True, group=CONTROL, key=True),
    Method("random", ranker=_random),
    Method("popular", ranker=_popular, group=RAW, key=True),
    Method("ease", ranker=_ease, group=CONTROL),
)

# --- which differences, first minus second

KEY_PAIRS = (  # shown for every protocol and every stratum
    ("blue", "base"),
    ("blue", "shuffled_blue"),
    ("base", "shuffled_base"),
    ("base", "empty"),
    ("10h+blue", "10h+base"),
    ("10h+blue", "10_history"),
    ("10h+blue", "10h+shuffled_blue"),
)
MORE_PAIRS = (  # whether training gave more than wording or popularity
    ("blue_centred", "base_centred"),
    ("blue", "base_centred"),
    ("10h+blue", "10h+pseudo_item"),
    ("pseudo_item", "shuffled_pseudo_item"),
    ("pseudo_item", "10_history"),
    ("10h+pseudo_item", "10_history"),
)
HEADLINES = (  # in one line for each protocol after the first, and of the cold start
    ("blue", "base"),
    ("blue", "shuffled_blue"),
    ("base", "shuffled_base"),
    ("10h+blue", "10_history"),
    ("10h+base", "10_history"),
)
Pair = tuple[str, str]


def pairs(names: Sequence[str]) -> list[Pair]:
    """All differences among the variants `names`.

    A name that is not in the table is a method with profiles from a file.
    """
    ours = [form + trained(names) for form in (ALONE, RECENT)]
    rows = dict.fromkeys(map(method_of, names))
    found = [*KEY_PAIRS]
    found += [(our, raw) for our in ours for raw in of_group(RAW)]
    found += [(ours[0], control) for control in of_group(CONTROL)]
    found += MORE_PAIRS
    for rival in [row.name for row in rows if row.group == RIVAL]:
        found += [(form + rival, form + BASE) for form in (ALONE, RECENT)]
        found += [(form + TRAINED, form + rival) for form in (ALONE, RECENT)]
    found += [
        (form + row.name, form + SHUFFLED + row.name)
        for row in rows
        for form in row.shuffled
    ]
    return existing(found, names)


def key_pairs(names: Iterable[str]) -> list[Pair]:
    """The differences that are shown for every protocol."""
    keys = [method.name for method in METHODS if method.key]
    return [*KEY_PAIRS, *((trained(names), name) for name in keys)]


def existing(found: Iterable[Pair], names: Iterable[str]) -> list[Pair]:
    """Those of `found`, each once, whose two methods are among `names`."""
    there = set(names)
    return [pair for pair in dict.fromkeys(found) if there.issuperset(pair)]


def trained(names: Iterable[str]) -> str:
    """The main method of a run: the trained profile if there is one."""
    return TRAINED if TRAINED in names else BASE


def of_group(group: str) -> list[str]:
    """Names of the methods of a group, and of the centred variants that are in it."""
    names = []
    for method in METHODS:
        if method.group == group:
            names.append(method.name)
            if method.centred and group == CONTROL:
                names.append(method.name + CENTRED)
    return names


# --- names


def method_of(variant: str) -> Method:
    """The row of a variant; a new one for profiles from a file."""
    name = variant.removeprefix(RECENT).removeprefix(SHUFFLED).removesuffix(CENTRED)
    rows = {method.name: method for method in METHODS}
    return rows.get(name) or Method(name, group=RIVAL)


def is_taken(name: str) -> bool:
    """Whether profiles from a file may not have this name."""
    known = name in {method.name for method in METHODS}
    return known or method_of(name).name != name


# --- texts


def profile_queries(
    f: QueryFormat, form: str, histories: Sequence[list[str]], profiles: Sequence[str]
) -> list[str]:
    """The queries of profiles in the form ALONE or RECENT, one a user."""
    if form == ALONE:
        return [queries.profile_query(f, profile) for profile in profiles]
    pairs = zip(histories, profiles, strict=True)
    return [queries.history_profile_query(f, titles, p) for titles, p in pairs]


def query_texts(
    f: QueryFormat,
    histories: Sequence[list[str]],
    profiles: Mapping[str, Sequence[str]],
    partners: Int[np.ndarray, " U"],
) -> dict[str, list[str]]:
    """The queries of every variant that is a text: its name -> one query a user.

    `profiles` has one text a user for each method that writes them; `partners` is the
    row whose profile the shuffled variants read instead.
    """
    texts = {
        method.name: [method.query(f, titles) for titles in histories]
        for method in METHODS
        if method.query is not None
    }
    for name, own in profiles.items():
        method, others = method_of(name), [own[int(row)] for row in partners]
        for form in method.forms:
            texts[form + name] = profile_queries(f, form, histories, own)
        for form in method.shuffled:
            control = profile_queries(f, form, histories, others)
            texts[form + SHUFFLED + name] = control
    return texts
