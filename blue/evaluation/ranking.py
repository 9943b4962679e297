"""Ranking the whole catalogue on the devices, for methods whose scores are cosines.

`protocols.rank_all` computes the same for any scores; tests compare the two. Here the
catalogue goes to the devices in slabs, each split over all devices. A device processes
its part in blocks, so memory does not grow with the catalogue. Only counts and the best
items return to the host.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from blue.evaluation import protocols
from blue.evaluation.protocols import TOLERANCE, TOP, FullRanks, Ranker, Targets
from blue.runtime.programs import Program, compile_program
from blue.runtime.sharding import AXES, put, replicated, to_host

BLOCK = 4096  # items a device scores at a time
BLOCKS = 8  # of a slab, on each device
QUERIES = 256  # ranked at a time
OVER_ALL = PartitionSpec(AXES)  # items, over every device


class Found(NamedTuple):
    """The result for one slab: counts and weights at or above each query's target, and
    the best items."""

    above: Int[Array | np.ndarray, " Q"]
    tied: Bool[Array | np.ndarray, " Q"]
    weight_above: Float[Array | np.ndarray, "Q W"]
    best: Float[Array | np.ndarray, "Q k"]
    top: Int[Array | np.ndarray, "Q k"]  # items; -1: none


class Sizes(NamedTuple):
    """Shapes of the program; catalogues of equal sizes share it."""

    queries: int
    width: int
    slab: int  # items, a multiple of the devices' number
    block: int  # divides what a device has of a slab
    weights: int  # columns
    own: int  # excluded items of a query's user
    same_title: int  # items of its target's title


def _rank_block(
    carry: Found,
    items: Float[Array, "n E"],
    weights: Float[Array, "n W"],
    start: Int[Array, ""],
    query: tuple[Array, ...],
) -> Found:
    """`carry` with one more block of items, numbered from `start`."""
    vectors, bar, own, same_title, num_items = query
    size = len(items)
    scores = jnp.matmul(vectors, items.T, precision=jax.lax.Precision.HIGHEST)
    here = start + jnp.arange(size) < num_items

    def without(cells: Int[Array, "Q m"]) -> Bool[Array, "Q n"]:
        at = cells - start
        at = jnp.where((at >= 0) & (at < size), at, size)  # the last column is dropped
        rows = jnp.arange(len(cells))[:, None]
        return ~jnp.zeros((len(cells), size + 1), bool).at[rows, at].set(True)[:, :-1]

    eligible = without(own) & here[None]
    not_below = ~(scores < bar[:, None] - TOLERANCE) & eligible  # so is NaN
    equal = not_below & (scores <= bar[:, None] + TOLERANCE)
    counted = (not_below & without(same_title)).astype(jnp.float32)
    shown = jnp.where(eligible, jnp.fmax(scores, -jnp.inf), -jnp.inf)
    best, top = _merge(
        jnp.concatenate([carry.best, shown], axis=1),
        jnp.concatenate(
            [carry.top, jnp.broadcast_to(start + jnp.arange(size)[None], shown.shape)],
            axis=1,
        ),
    )
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    return Found(
        carry.above + not_below.sum(axis=1),
        carry.tied | equal.any(axis=1),
        carry.weight_above + product(counted, weights),
        best,
        top,
    )


def _merge(
    scores: Float[Array, "Q n"], items: Int[Array, "Q n"]
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """The best; of equals the first. Those of minus infinity are no items."""
    best, at = jax.lax.top_k(scores, TOP)
    top = jnp.take_along_axis(items, at, axis=1)
    return best, jnp.where(best > -jnp.inf, top, -1)


@functools.cache
def make_rank_slab(mesh: Mesh, sizes: Sizes) -> Program:
    """(vectors [Q E], target's score [Q], own [Q m], same_title [Q m], number of items,
    slab [n E], its weights [n W], its first item's number) -> Found.
    own: the user's items; same_title: those of the target's title; filled up with -1.
    """
    Q, E, slab, block, W, own, same_title = sizes
    per_device = slab // mesh.size

    def on_device(start: Array, items: Array, weights: Array, query: tuple) -> Found:
        start += jax.lax.axis_index(AXES) * per_device

        def one(carry: Found, part: tuple) -> tuple[Found, None]:
            items, weights, first = part
            return _rank_block(carry, items, weights, first, query), None

        split = lambda a: a.reshape(per_device // block, block, *a.shape[1:])
        starts = start + block * jnp.arange(per_device // block)
        empty = Found(
            jnp.zeros(Q, jnp.int32), jnp.zeros(Q, bool), jnp.zeros((Q, W)),
            jnp.full((Q, TOP), -jnp.inf), jnp.full((Q, TOP), -1, jnp.int32),
        )  # fmt: skip
        found, _ = jax.lax.scan(one, empty, (split(items), split(weights), starts))
        # devices hold items in their order, and of equals the first is taken
        everywhere = lambda a: jax.lax.all_gather(a, AXES, axis=1, tiled=True)
        best, top = _merge(everywhere(found.best), everywhere(found.top))
        total = functools.partial(jax.lax.psum, axis_name=AXES)
        tied = total(found.tied.astype(jnp.int32)) > 0
        return Found(total(found.above), tied, total(found.weight_above), best, top)

    def run(
        vectors: Array, bar: Array, own: Array, same_title: Array, num_items: Array,
        items: Array, weights: Array, start: Array,
    ) -> Found:  # fmt: skip
        whole = PartitionSpec()
        by_device = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(whole, OVER_ALL, OVER_ALL, whole),
            out_specs=whole,
            check_vma=False,
        )
        return by_device(
            start, items, weights, (vectors, bar, own, same_title, num_items)
        )

    here = replicated(mesh)
    whole = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=here)
    over = NamedSharding(mesh, OVER_ALL)
    spread = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=over)
    args = (
        whole((Q, E), jnp.float32),
        whole((Q,), jnp.float32),
        whole((Q, own), jnp.int32),
        whole((Q, same_title), jnp.int32),
        whole((), jnp.int32),
        spread((slab, E), jnp.float32),
        spread((slab, W), jnp.float32),
        whole((), jnp.int32),
    )
    return compile_program(run, args, out_shardings=here)


def rank_all(
    ranker: Ranker,
    targets: Targets,
    weights: Float[np.ndarray, "items W"],
    mesh: Mesh,
    *,
    block: int = BLOCK,
) -> FullRanks:
    """`protocols.rank_all` of a ranker by cosines, on the devices of `mesh`.

    The same, except for float32 rounding in `shares`, and in `top` where scores are
    that close.
    """
    assert ranker.cosines is not None, ranker.names
    queries, table, centre = ranker.cosines
    (num_methods, num_rows, width), num_items = queries.shape, len(weights)
    num_queries = num_methods * num_rows
    at_target = protocols.score_targets(ranker, targets).reshape(num_queries)
    sizes = slab_sizes(mesh, num_items, width, weights.shape[1], block=block)
    own, same_title = _filled(targets.own), _filled(targets.same_title)
    sizes = sizes._replace(own=own.shape[1], same_title=same_title.shape[1])
    program = make_rank_slab(mesh, sizes)
    whole = replicated(mesh)
    parts = []
    for first in range(0, num_queries, QUERIES):
        at = np.minimum(np.arange(first, first + QUERIES), num_queries - 1)
        row = at % num_rows
        asked = (
            queries.reshape(num_queries, width)[at].astype(np.float32),
            at_target[at].astype(np.float32),
            own[row],
            same_title[row],
            np.int32(num_items),
        )
        parts.append(put(asked, whole))
    found: list[list[Found]] = [[] for _ in parts]
    for start in range(0, num_items, sizes.slab):
        items = slice(start, min(start + sizes.slab, num_items))
        slab = (protocols.item_vectors(table, items, centre), weights[items])
        slab = put([_full(a, sizes.slab) for a in slab], NamedSharding(mesh, OVER_ALL))
        number = put(np.int32(start), whole)
        for n, asked in enumerate(parts):
            found[n].append(program(*asked, *slab, number))
    together = [_over_slabs(to_host(slabs)) for slabs in found]
    joined = Found(*map(np.concatenate, zip(*together, strict=True)))
    shaped = jax.tree.map(
        lambda a: a[:num_queries].reshape(num_methods, num_rows, *a.shape[1:]), joined
    )
    shares = protocols.shares_above(shaped.weight_above, targets, weights)
    return FullRanks(1 + shaped.above, shaped.tied, shares, shaped.top)


def slab_sizes(
    mesh: Mesh, num_items: int, width: int, num_weights: int, *, block: int = BLOCK
) -> Sizes:
    """Sizes for a catalogue; the caller sets those of `own` and `same_title`."""
    block = min(block, -(-num_items // mesh.size))
    blocks = min(BLOCKS, -(-num_items // (mesh.size * block)))
    slab = mesh.size * block * blocks
    return Sizes(QUERIES, width, slab, block, num_weights, own=1, same_title=1)


def _full(rows: np.ndarray, size: int) -> Float[np.ndarray, "n x"]:
    return np.pad(rows.astype(np.float32), ((0, size - len(rows)), (0, 0)))


def _filled(lists: Any) -> Int[np.ndarray, "U m"]:
    """Lists as rows filled up with -1, their length a power of two: few programs."""
    longest = max([1, *map(len, lists)])
    out = np.full((len(lists), 1 << (longest - 1).bit_length()), -1, np.int32)
    for row, items in enumerate(lists):
        out[row, : len(items)] = items
    return out


def _over_slabs(slabs: list[Found]) -> Found:
    """Slabs in their order -> the catalogue. Weights are summed in float64."""
    best = np.concatenate([s.best for s in slabs], axis=1)
    top = np.concatenate([s.top for s in slabs], axis=1)
    order = np.argsort(-best, axis=1, kind="stable")[:, :TOP]
    over = lambda arrays: np.stack([*arrays])
    return Found(
        over(s.above for s in slabs).astype(np.int64).sum(axis=0),
        np.asarray(over(s.tied for s in slabs).any(axis=0)),
        over(s.weight_above for s in slabs).astype(np.float64).sum(axis=0),
        np.take_along_axis(best, order, axis=1),
        np.take_along_axis(top, order, axis=1).astype(np.int64),
    )
