"""Baselines of profiles: rankers without a model, and profiles by rule.

Chance, popularity, mean item vectors and EASE rank items by themselves; the constant
text and the pseudo item are profiles without a language model.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.linalg
import scipy.sparse
from jaxtyping import Float, Int

from blue.data.examples import Examples, Split, history, rng_for
from blue.data.log import Log
from blue.errors import UserError
from blue.evaluation.protocols import Ranker, Score, unit
from blue.text.prompts import make_safe

_BLOCK = 16_384  # items read at a time
_LIST_ELEMENTS = 3  # of a list-like column in a pseudo item


# --- rankers


def chance(example_ids: Int[np.ndarray, " U"], *, seed: int) -> Ranker:
    """A random score for each row and item, the same at every call."""
    ids = example_ids.tolist()
    keys = [rng_for(seed, "random ranker", i).integers(2**63) for i in ids]
    return Ranker(("random",), _random_scores(np.array(keys, np.uint64)))


def popularity(item_counts: Int[np.ndarray, " items"]) -> Ranker:
    """Interactions of training users, the same for every user."""

    def score(rows: np.ndarray, items: slice | np.ndarray) -> np.ndarray:
        counts = item_counts[items].astype(np.float64)  # [n] or [r n]
        return np.broadcast_to(counts, (1, len(rows), counts.shape[-1]))

    return Ranker(("popular",), score)


def _random_scores(keys: np.ndarray) -> Score:
    """Scores in [0, 1) that depend only on the row's key and the item.

    SplitMix64: Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195.
    """
    steps = [(30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)]

    def score(rows: np.ndarray, items: slice | np.ndarray) -> np.ndarray:
        whole = isinstance(items, slice)
        ids = np.arange(items.start, items.stop)[None] if whole else items
        x = np.uint64(0x9E3779B97F4A7C15) * (ids + 1).astype(np.uint64)
        x = x + keys[rows][:, None]
        for shift, factor in steps:
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        x ^= x >> np.uint64(31)
        return (x >> np.uint64(11))[None] * 2.0**-53

    return score


def mean_vector(
    table: Float[np.ndarray, "items E"], items: Int[np.ndarray, " k"]
) -> Float[np.ndarray, " E"]:
    """Mean of the vectors of `items`, read a block at a time."""
    total = np.zeros(table.shape[1])
    for start in range(0, len(items), _BLOCK):
        total += table[items[start : start + _BLOCK]].sum(axis=0, dtype=np.float64)
    return (total / max(len(items), 1)).astype(np.float32)


def history_vectors(
    split: Split,
    rows: Int[np.ndarray, " U"],
    table: Float[np.ndarray, "items E"],
    *,
    newest: int | None = None,
    centre: Float[np.ndarray, " E"] | None = None,
) -> Float[np.ndarray, "U E"]:
    """Mean of the vectors of each row's history, or of its `newest`, at unit length.

    With `centre`, it is subtracted from each item's vector, then scaled to unit length.
    No history: 0.
    """
    means = np.zeros((len(rows), table.shape[1]), np.float32)
    for i, row in enumerate(rows):
        items = history(split, row)[0]
        vectors = np.asarray(table[items[-newest:] if newest else items], np.float32)
        if centre is not None:
            vectors = unit(vectors - centre)
        if len(vectors):
            means[i] = vectors.mean(axis=0)
    return unit(means)


def ease_weights(
    gram: Float[np.ndarray, "n n"], *, l2: float
) -> Float[np.ndarray, "n n"]:
    """Item-item weights B of the regression of every item on all the others.

    `gram` is X'X of users x items; B minimises |X - XB|^2 + l2 |B|^2 with a zero
    diagonal. EASE, Steck 2019, https://arxiv.org/abs/1905.03375, equation 8:
    P = (X'X + l2 I)^-1, B_ij = -P_ij / P_jj. Overwrites `gram`; O(n^3).
    """
    gram[np.diag_indices_from(gram)] += l2
    factorise, invert = scipy.linalg.get_lapack_funcs(("potrf", "potri"), (gram,))
    factor, failed = factorise(gram.T, lower=1, overwrite_a=1)
    assert not failed, "X'X + l2 I is positive definite for l2 > 0"
    inverse, failed = invert(factor, lower=1, overwrite_c=1)
    assert not failed
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return weights


def ease(
    log: Log,
    examples: Examples,
    split: Split,
    rows: Int[np.ndarray, " U"],
    *,
    l2: float,
) -> Ranker:
    """EASE on the training users' interactions, applied to each row's history.

    Items no training user touched score 0. Memory: about 20 bytes times the square of
    the items in the pool.
    """
    pool, num_items = examples.pool, len(examples.item_counts)
    place = np.full(num_items, len(pool), np.int64)  # last row and column: zeros
    place[pool] = np.arange(len(pool))
    events = np.isin(log.user, examples.train.user)
    shape = (len(log.user_ids), len(pool))
    ones = np.ones(int(events.sum()))
    cells = (log.user[events], place[log.item[events]])
    seen = scipy.sparse.csr_array((ones, cells), shape=shape)
    seen.data[:] = 1.0  # repeats were summed
    weights = np.zeros((len(pool) + 1, len(pool) + 1), np.float32)
    weights[:-1, :-1] = ease_weights((seen.T @ seen).toarray(), l2=l2)
    known = [np.unique(place[history(split, row)[0]]) for row in rows]

    def score(rows: np.ndarray, items: slice | np.ndarray) -> np.ndarray:
        columns = (
            [place[items]] * len(rows) if isinstance(items, slice) else place[items]
        )
        pairs = zip((known[row] for row in rows), columns, strict=True)
        scores = [weights[np.ix_(have, want)].sum(axis=0) for have, want in pairs]
        return np.stack(scores)[None]

    return Ranker(("ease",), score)


# --- profiles by rule


def constant_profile(
    titles: list[str], item_counts: Int[np.ndarray, " items"], *, num: int
) -> str:
    """The titles of the `num` items training users took most, the same for everyone."""
    most = np.argsort(-item_counts, kind="stable")[:num]
    return ", ".join(titles[i] for i in most.tolist())


def pseudo_items(
    template: str,
    columns: Mapping[str, list[str]],
    histories: Sequence[np.ndarray],
) -> list[str]:
    """A pseudo item for each history (items, oldest first), worded by the template.

    `template` names item columns, such as "{genres} movie ({year})". A column of
    numbers is filled with the median (the lower of two). Any other is filled with the
    three most frequent elements of its comma-separated lists, the more recent first
    among equals. Brackets around a missing value are dropped. Without any value the
    text is empty.

    Raises:
      UserError: a column that the log has not.
    """
    pieces = template_pieces("data.pseudo_item_template", template, columns)
    numeric = {field: _is_numeric(columns[field]) for _, field in pieces if field}
    texts = []
    for items in histories:
        values = {"": ""}
        for field in numeric:
            column = columns[field]
            cells = [column[i].strip() for i in items.tolist()]
            cells = [cell for cell in cells if cell]
            typical = _median if numeric[field] else _most_frequent
            values[field] = make_safe(typical(cells)) if cells else ""
        filled = "".join(literal + values[field] for literal, field in pieces)
        filled = " ".join(re.sub(r"[(\[]\s*[)\]]", "", filled).split())
        texts.append(filled if any(values.values()) else "")
    return texts


def template_pieces(
    name: str, template: str, columns: Mapping[str, list[str]]
) -> list[tuple[str, str]]:
    """(text before, column or "") pairs. UserError unless plain, known columns."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{name}={template!r}: {error}") from None
    for _, field, spec, conversion in parsed:
        if field is not None and (field not in columns or spec or conversion):
            known = ", ".join(columns) or "none"
            raise UserError(
                f"{name}={template!r}: {{{field}}} is no item column; known: {known}"
            )
    return [(literal, field or "") for literal, field, _, _ in parsed]


def _is_numeric(values: Sequence[str]) -> bool:
    try:
        return bool([float(v) for v in {*values} if v.strip()])
    except ValueError:
        return False


def _median(cells: Sequence[str]) -> str:
    return sorted(cells, key=float)[(len(cells) - 1) // 2]


def _most_frequent(cells: Sequence[str]) -> str:
    newest_first = [e.strip() for cell in reversed(cells) for e in cell.split(",")]
    counts = Counter(e for e in newest_first if e)  # equal counts stay in order
    return ", ".join(element for element, _ in counts.most_common(_LIST_ELEMENTS))
