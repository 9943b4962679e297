"""Evaluation protocols: the items a target is ranked among, and its rank.

Drawn candidates (the target and 99 negatives, as in section "Evaluation" of BLUE,
https://arxiv.org/abs/2605.06981) are fixed files. The whole catalogue is streamed in
blocks; one pass gives ranks, the exact expectation of drawn negatives, and
recommendations. Other items of the target's user are excluded.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int

from blue.data.examples import Examples, Split, items_of_user, rng_for
from blue.evaluation import metrics
from blue.runtime import files

POWER = 0.75  # of the popularity by which negatives are drawn
# Scores this close are a tie. It is the precision of a float32 cosine: scores of equal
# vectors differ in the last bits by their column.
TOLERANCE = 1e-6
TOP = 10  # items recommended to each row
_ROWS = 64  # rows scored at a time

# (rows [r], items) -> scores [R r n] of R methods; `items` is a range of the catalogue,
# or the candidates [r n] of each row
Score = Callable[[np.ndarray, "slice | np.ndarray"], np.ndarray]


class Cosines(NamedTuple):
    """Methods whose scores are products of a row's vector with an item's."""

    queries: Float[np.ndarray, "R U E"]  # of unit length
    table: Float[np.ndarray, "items E"]
    centre: Float[np.ndarray, " E"] | None  # see `item_vectors`


class Ranker(NamedTuple):
    """R methods that are scored together."""

    names: tuple[str, ...]
    score: Score
    cosines: Cosines | None = None  # what `score` does, where it does only that


def by_cosine(
    names: Sequence[str],
    queries: Float[np.ndarray, "R U E"],
    table: Float[np.ndarray, "items E"],
    *,
    centre: Float[np.ndarray, " E"] | None = None,
) -> Ranker:
    """Cosine of each row's R query vectors (of unit length) with items of `table`."""

    def score(rows: np.ndarray, items: slice | np.ndarray) -> np.ndarray:
        found = item_vectors(table, items, centre)  # [n E] or [r n E]
        if isinstance(items, slice):
            return queries[:, rows] @ found.T
        by_row = queries[:, rows].swapaxes(0, 1) @ found.swapaxes(1, 2)  # [r R n]
        return by_row.swapaxes(0, 1)

    return Ranker(tuple(names), score, Cosines(queries, table, centre))


def item_vectors(
    table: Float[np.ndarray, "items E"],
    items: slice | np.ndarray,
    centre: Float[np.ndarray, " E"] | None,
) -> Float[np.ndarray, "*n E"]:
    """Rows of the table; with `centre`, less it and at unit length again."""
    found = np.asarray(table[items], np.float32)
    return found if centre is None else unit(found - centre.astype(np.float32))


def unit(vectors: Float[np.ndarray, "*n E"]) -> Float[np.ndarray, "*n E"]:
    """The vectors at unit length; zero stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)


# --- drawn candidates


class Candidates(NamedTuple):
    """The items targets are ranked among; a row of the split may be missing."""

    rows: Int[np.ndarray, " n"]  # of the split, ascending
    items: Int[np.ndarray, "n I"]  # column 0: the target
    sha256: str  # of the file


def popularity_weights(
    item_counts: Int[np.ndarray, " items"],
) -> Float[np.ndarray, " items"]:
    """Interactions of training users to the power of 0.75, as word2vec draws words.

    Mikolov et al. 2013, https://arxiv.org/abs/1310.4546, section 2.2.
    """
    return item_counts.astype(np.float64) ** POWER


def draw_weighted(
    rng: np.random.Generator,
    weights: Float[np.ndarray, " items"],
    num: int,
) -> Int[np.ndarray, " num"]:
    """`num` different items, drawn one after the other in proportion to `weights`.

    Fewer where fewer have a weight. The smallest of exponential variates over weights:
    Efraimidis and Spirakis 2006, https://doi.org/10.1016/j.ipl.2005.11.003.
    """
    items = np.flatnonzero(weights)
    keys = rng.exponential(size=len(items)) / weights[items]
    if len(items) > num:
        nearest = np.argpartition(keys, num)[:num]
        items, keys = items[nearest], keys[nearest]
    return items[np.argsort(keys)].astype(np.int32)


def draw_candidates(
    examples: Examples,
    split: Split,
    *,
    protocol: str,
    seed: int,
    num: int,
    category: Sequence[str] | None = None,
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, "n I"]]:
    """The rows of `split` that `protocol` ranks, and their 1 + `num` candidates.

    "1+99": the split's own. "1+99-popularity": drawn by `popularity_weights`.
    "1+99-category": uniform over items of the target's `category`. A row with fewer
    than `num` of them, or without a category, is left out: a rank among fewer is
    another metric. Candidates are always items of training users, without the user's
    own and those of the target's title. A draw depends only on (seed, protocol, user,
    target).
    """
    targets = split.next_item
    if protocol == "1+99":
        rows = np.arange(len(targets))
        return rows, np.concatenate([targets[:, None], split.negatives], axis=1)
    in_pool = np.zeros(len(examples.item_counts))
    in_pool[examples.pool] = 1.0
    groups = np.zeros(0, np.int64)
    if protocol == "1+99-popularity":
        in_pool *= popularity_weights(examples.item_counts)
    else:
        assert protocol == "1+99-category" and category is not None, protocol
        groups = np.unique(np.array(["", *category]), return_inverse=True)[1][1:]
    rows, drawn = [], []
    for row, (user, target) in enumerate(zip(split.user, targets, strict=True)):
        weights = in_pool.copy()
        if len(groups):
            weights[groups != groups[target]] = 0.0
            weights *= bool(category and category[target])
        weights[items_of_user(split, row)] = 0.0
        weights[examples.title_group == examples.title_group[target]] = 0.0
        negatives = draw_weighted(rng_for(seed, protocol, user, target), weights, num)
        if len(negatives) == num:
            rows.append(row)
            drawn.append(np.concatenate([[target], negatives]))
    items = np.array(drawn, np.int32).reshape(len(rows), 1 + num)
    return np.array(rows, np.int64), items


def fixed_candidates(
    path: epath.Path,
    inputs: str,
    draw: Callable[[], tuple[np.ndarray, np.ndarray]],
    *,
    write: bool = True,
) -> Candidates:
    """The candidates in the file at `path`; if there is none, `draw` makes them.

    The file is made again when `inputs`, a digest of everything they depend on,
    changes. Its bytes depend only on `inputs` and the candidates.
    """
    if path.exists():
        content = path.read_bytes()
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as found:
                if str(found["inputs"]) == inputs:
                    digest = hashlib.sha256(content).hexdigest()
                    return Candidates(found["rows"], found["items"], digest)
        except (ValueError, KeyError, OSError, zipfile.BadZipFile):
            pass  # damaged: made again
    rows, items = draw()
    buffer = io.BytesIO()
    np.savez(buffer, rows=rows, items=items, inputs=np.array(inputs))
    if write:  # one process of several is enough
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, buffer.getvalue())
    return Candidates(rows, items, hashlib.sha256(buffer.getvalue()).hexdigest())


def rank_candidates(
    ranker: Ranker,
    rows: Int[np.ndarray, " n"],
    candidates: Int[np.ndarray, "n I"],
) -> tuple[Int[np.ndarray, "R n"], Bool[np.ndarray, "R n"]]:
    """Ranks in [1, I] of column 0 for the ranker's `rows`, and whether it is tied."""
    ranks, tied = [], []
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        scores = ranker.score(rows[part], candidates[part])
        ranks.append(metrics.rank_of_target(scores, tolerance=TOLERANCE))
        tied.append(metrics.tied_targets(scores, tolerance=TOLERANCE))
    return np.concatenate(ranks, axis=1), np.concatenate(tied, axis=1)


# --- the whole catalogue


class Targets(NamedTuple):
    """U rows to be ranked among all items, and the items excluded for each."""

    items: Int[np.ndarray, " U"]
    own: list[np.ndarray]  # all items of the row's user, ascending, the target too
    same_title: list[np.ndarray]  # other items of the target's title, ascending


class FullRanks(NamedTuple):
    """Ranks of the targets of U rows in the whole catalogue, by R methods."""

    ranks: Int[np.ndarray, "R U"]  # 1 + items at or above it, the user's own left out
    tied: Bool[np.ndarray, "R U"]
    shares: Float[np.ndarray, "R U W"]  # of eligible weight at or above it, in [0, 1]
    top: Int[np.ndarray, "R U 10"]  # best items first, equals by number; -1: none left


def make_targets(
    split: Split, rows: Int[np.ndarray, " U"], title_group: Int[np.ndarray, " items"]
) -> Targets:
    """The next items of `rows` of `split`."""
    order = np.argsort(title_group, kind="stable")
    bounds = np.searchsorted(title_group[order], np.arange(title_group.max() + 2))
    targets = split.next_item[rows]
    owned = [items_of_user(split, row) for row in rows]
    mates = [
        order[slice(*bounds[title_group[t] : title_group[t] + 2])] for t in targets
    ]
    pairs = zip(mates, owned, strict=True)
    return Targets(targets, owned, [np.setdiff1d(m, o) for m, o in pairs])


def rank_all(
    ranker: Ranker,
    targets: Targets,
    weights: Float[np.ndarray, "items W"],
    *,
    block: int = 4096,
) -> FullRanks:
    """Ranks each target among all items but the user's own, `block` items at a time.

    A column of `weights` says how eligible each item is as a drawn negative. Items of
    the target's title are not eligible, though they do count in the rank. Ties and NaN
    count against the target. Memory: block * 64 * R scores.
    """
    num_items, num_weights = weights.shape
    num_rows, num_methods = len(targets.items), len(ranker.names)
    shape = (num_methods, num_rows)
    at_target = score_targets(ranker, targets)[..., None]
    above, tied = np.zeros(shape, np.int64), np.zeros(shape, bool)
    weight_above = np.zeros((*shape, num_weights))
    best = np.full((*shape, TOP), -np.inf)
    top = np.full((*shape, TOP), -1, np.int64)
    for start in range(0, num_items, block):
        items = slice(start, min(start + block, num_items))
        share = weights[items].astype(np.float32)
        for part in _parts(num_rows, _ROWS):
            own_cells = _cells(targets.own, part, items)
            mate_cells = _cells(targets.same_title, part, items)
            scores, bar = ranker.score(part, items), at_target[:, part]
            not_below = ~(scores < bar - TOLERANCE)
            equal = not_below & (scores <= bar + TOLERANCE)
            not_below[:, *own_cells] = equal[:, *own_cells] = False
            above[:, part] += not_below.sum(axis=-1)
            tied[:, part] |= equal.any(axis=-1)
            not_below[:, *mate_cells] = False
            weight_above[:, part] += not_below.astype(np.float32) @ share
            scores = np.fmax(scores, -np.inf)  # NaN is not recommended
            scores[:, *own_cells] = -np.inf
            for method in range(num_methods):
                best[method, part], top[method, part] = _merge_top(
                    best[method, part], top[method, part], scores[method], start
                )
    shares = shares_above(weight_above, targets, weights)
    return FullRanks(1 + above, tied, shares, top)


def score_targets(ranker: Ranker, targets: Targets) -> Float[np.ndarray, "R U"]:
    """The scores of the targets themselves."""
    parts = _parts(len(targets.items), _ROWS)
    scores = [ranker.score(part, targets.items[part, None]) for part in parts]
    return np.concatenate(scores, axis=1)[..., 0]


def shares_above(
    weight_above: Float[np.ndarray, "R U W"],
    targets: Targets,
    weights: Float[np.ndarray, "items W"],
) -> Float[np.ndarray, "R U W"]:
    """The share of the eligible weight that is at or above each target."""
    pairs = zip(targets.own, targets.same_title, strict=True)
    barred = np.stack(
        [weights[o].sum(axis=0) + weights[m].sum(axis=0) for o, m in pairs]
    )
    shares = weight_above / np.maximum(weights.sum(axis=0) - barred, 1e-12)
    return np.clip(shares, 0.0, 1.0)


def _parts(num: int, size: int) -> list[np.ndarray]:
    return [np.arange(i, min(i + size, num)) for i in range(0, num, size)]


def _cells(
    lists: Sequence[np.ndarray], rows: np.ndarray, items: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, in the block, of the items in the lists of `rows`."""
    ends = (items.start, items.stop)
    found = [lists[i][slice(*np.searchsorted(lists[i], ends))] for i in rows]
    places = np.repeat(np.arange(len(rows)), [len(f) for f in found])
    return places, np.concatenate(found).astype(np.int64) - items.start


def _merge_top(
    best: Float[np.ndarray, "r k"],
    items: Int[np.ndarray, "r k"],
    scores: Float[np.ndarray, "r n"],
    start: int,
) -> tuple[Float[np.ndarray, "r k"], Int[np.ndarray, "r k"]]:
    """The k best of those known and of a block that begins at item `start`."""
    best, items, k = best.copy(), items.copy(), best.shape[1]
    for row in np.flatnonzero((scores > best[:, -1:]).any(axis=1)):
        new = scores[row]
        bar = np.partition(new, -k)[-k] if len(new) > k else -np.inf
        places = np.flatnonzero(new >= bar)
        both = np.concatenate([best[row], new[places]])
        order = np.argsort(-both, kind="stable")[:k]  # equals: the lower number first
        best[row] = both[order]
        items[row] = np.concatenate([items[row], start + places])[order]
    return best, items


def recommended(
    top: Int[np.ndarray, "U k"], item_counts: Int[np.ndarray, " items"]
) -> dict[str, float]:
    """How popular and how varied the items recommended to U rows are.

    `log_popularity`: mean of log(1 + training interactions); `gini` of how often each
    item of the catalogue is recommended; `coverage`: the share recommended at all.
    """
    shown = top[top >= 0]
    times = np.bincount(shown, minlength=len(item_counts))
    return {
        "log_popularity": float(np.log1p(item_counts[shown]).mean()),
        "gini": metrics.gini(times),
        "coverage": float((times > 0).mean()),
    }
