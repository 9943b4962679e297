"""Packs texts of many lengths into rows of few lengths, with little padding.

A row holds several texts one after the other. A common beginning, such as a user's
recent items before each of G profiles, is in a row once. `Rows` says which token sees
which; with this attention each text gets the vector it has alone. Packing works on
token ids, so it is exact for every tokenizer.
"""

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

LEAST_SHARED = 8  # tokens; shorter common beginnings are repeated
MOST_TOGETHER = 32  # texts of a family tried for one row


class Rows(NamedTuple):
    """R rows of T slots. A token sees those before it in its row whose `segment` is its
    own or its `parent`."""

    tokens: Int[np.ndarray, "R T"]
    segment: Int[np.ndarray, "R T"]  # -1: padding
    parent: Int[np.ndarray, "R T"]  # of the common beginning; else its own segment
    position: Int[np.ndarray, "R T"]  # in its text
    ends: Int[np.ndarray, "R S"]  # slot of the last token of each text
    text: Int[np.ndarray, "R S"]  # its number; -1: no more texts
    used: int  # slots with a token


class RowShapes(NamedTuple):
    """Sizes of `Rows` as a program takes them."""

    rows: int  # R
    tokens: int  # T
    texts: int  # S


class _Texts(NamedTuple):
    """Texts sorted by length, and their families: texts with a common beginning."""

    ids: list[Sequence[int]]
    number: list[int]  # index of each among the given texts
    length: list[int]  # ascending
    family: list[int]
    shared: list[int]  # tokens that a family begins with
    members: list[list[int]]  # of a family, by length, longest first


class _Plan(NamedTuple):
    """One batch: the groups of each row. The first text of a group is complete; the
    others omit the family's beginning."""

    length: int
    rows: list[list[list[int]]]
    text_tokens: int  # beginnings counted with each text
    left: list[int]  # without the beginning


def texts_a_row(length: int) -> int:
    """S: the most texts in a row of `length` slots."""
    return max(16, length // 16)


def row_shapes(rows: int, length: int) -> RowShapes:
    """Sizes of the batches that `pack` makes: `rows` rows of `length` slots."""
    return RowShapes(rows, length, texts_a_row(length))


def pack(
    texts: Sequence[Sequence[int]],
    *,
    lengths: Sequence[int],
    rows: int,
    cost: Callable[[int], float],
    pad_id: int,
) -> Iterator[Rows]:
    """Batches of `rows` rows, all of one of `lengths`, that hold each text once.

    texts: token ids, no two alike, none longer than the longest row. lengths:
    ascending. cost: length of the rows -> cost of a batch. The next batch is the one
    with the least cost a token.
    """
    known = _in_families(texts)
    left, sharing = list(range(len(texts) + 1)), any(known.shared)
    while (longest := _longest(left, len(texts) - 1)) >= 0:
        best, least = None, math.inf
        for length in lengths:
            full = cost(length) / (rows * length)  # cost a token, without sharing
            if length < known.length[longest] or not sharing and full >= least:
                continue
            plan = _plan(known, left, length, rows)
            if cost(length) / plan.text_tokens < least:
                best, least = plan, cost(length) / plan.text_tokens
        assert best, "a text is longer than the longest row"
        left = best.left
        yield _fill(known, best, rows, pad_id)


def _in_families(texts: Sequence[Sequence[int]]) -> _Texts:
    """Groups texts into families. Texts are sorted by tokens; a neighbour joins while
    it saves more than the shorter beginning costs."""
    family, shared, sizes = [0] * len(texts), [0], [0]
    before: Sequence[int] = ()
    for now in sorted(range(len(texts)), key=lambda n: tuple(texts[n])):
        size, same = sizes[-1], _common(before, texts[now])
        kept = same if size == 1 else min(shared[-1], same)
        worth = kept >= LEAST_SHARED and kept * size >= shared[-1] * (size - 1)
        if size and not (worth and size < MOST_TOGETHER):
            shared.append(0)
            sizes.append(0)
            kept = 0
        family[now] = len(sizes) - 1
        sizes[-1] += 1
        shared[-1] = kept
        before = texts[now]
    number = sorted(range(len(texts)), key=lambda n: len(texts[n]))
    members: list[list[int]] = [[] for _ in sizes]
    for place in reversed(range(len(number))):
        members[family[number[place]]].append(place)
    return _Texts(
        [texts[n] for n in number],
        number,
        [len(texts[n]) for n in number],
        [family[n] for n in number],
        shared,
        members,
    )


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common beginning of two texts, without their last tokens."""
    most = min(len(a), len(b)) - 1
    return next((n for n in range(most) if a[n] != b[n]), max(most, 0))


def _longest(left: list[int], place: int) -> int:
    """The longest unplaced text among the first `place` + 1; -1: none.

    left[n + 1] is n + 1 for an unplaced text, else less: union-find.
    """
    n = place + 1
    while left[n] != n:
        left[n] = left[left[n]]
        n = left[n]
    return n - 1


def _plan(known: _Texts, left: list[int], length: int, rows: int) -> _Plan:
    """Fills each row with the longest text that fits, then with others of its
    family."""
    out, left = _Plan(length, [], 0, left.copy()), left.copy()
    most, total = texts_a_row(length), 0
    for _ in range(rows):
        space, count, groups = length, 0, []
        while count < most:
            fitting = bisect.bisect_right(known.length, space) - 1
            first = _longest(left, fitting)
            if first < 0:
                break
            of = known.family[first]
            begun = known.shared[of]
            group = []
            for place in [first, *(known.members[of] if begun else ())]:
                size = known.length[place] - (begun if group else 0)
                if left[place + 1] == place + 1 and size <= space and count < most:
                    group.append(place)
                    left[place + 1] = place
                    space, count = space - size, count + 1
                    total += known.length[place]
            groups.append(group)
        if not groups:
            break
        out.rows.append(groups)
    return out._replace(text_tokens=total, left=left)


def _fill(known: _Texts, plan: _Plan, rows: int, pad_id: int) -> Rows:
    """The arrays of a plan."""
    shape, most = (rows, plan.length), texts_a_row(plan.length)
    tokens = np.full(shape, pad_id, np.int32)
    segment, parent = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
    position = np.zeros(shape, np.int32)
    ends = np.zeros((rows, most), np.int32)
    text = np.full((rows, most), -1, np.int32)
    used = 0
    for r, groups in enumerate(plan.rows):
        slot = segments = count = 0
        for group in groups:
            begun = known.shared[known.family[group[0]]] if len(group) > 1 else 0
            beginning = segments
            parts = [(None, 0, begun)] if begun else []
            parts += [(place, begun, known.length[place]) for place in group]
            for place, start, end in parts:
                here = slice(slot, slot + end - start)
                tokens[r, here] = known.ids[group[0] if place is None else place][
                    start:end
                ]
                segment[r, here] = segments
                parent[r, here] = beginning if start else segments
                position[r, here] = np.arange(start, end)
                slot, segments = here.stop, segments + 1
                if place is not None:
                    ends[r, count] = slot - 1
                    text[r, count] = known.number[place]
                    count += 1
        used += slot
    return Rows(tokens, segment, parent, position, ends, text, used)
