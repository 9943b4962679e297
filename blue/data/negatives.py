"""Sampled negatives: items that a user never touched."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32

from blue.data.examples import Split, items_of_user, rng_for
from blue.errors import UserError


def draw_negatives(
    rng: np.random.Generator,
    split: Split,
    i: int | np.integer,
    pool: Int32[np.ndarray, " k"],
    title_group: Int32[np.ndarray, " I"],
    num: int,
) -> Int32[np.ndarray, " m"]:
    """`num` different items, or all if there are fewer, drawn uniformly."""
    owned, group = items_of_user(split, i), title_group[split.next_item[i]]

    def allowed(items: Int32[np.ndarray, " m"]) -> Int32[np.ndarray, " a"]:
        places = np.minimum(np.searchsorted(owned, items), len(owned) - 1)
        return items[(owned[places] != items) & (title_group[items] != group)]

    if len(pool) >= 4 * (num + len(owned)):  # most draws are accepted
        drawn = np.zeros(0, np.int32)
        for _ in range(10):
            more = allowed(pool[rng.integers(len(pool), size=2 * num)])
            drawn = np.concatenate([drawn, more])
            _, first = np.unique(drawn, return_index=True)
            if len(first) >= num:
                return drawn[np.sort(first)[:num]]
    free = allowed(pool)
    return rng.choice(free, size=min(num, len(free)), replace=False)


def check_candidates(held_out: Sequence[Split], num_pool: int, num: int) -> None:
    """Raises `UserError` where a user held out has fewer than `num` candidates."""
    counts = [(split.negatives >= 0).sum(axis=1) for split in held_out]
    fewest = int(np.concatenate(counts).min(initial=num))
    if fewest < num:
        raise UserError(
            f"data.eval_negatives={num}: of the {num_pool} items of training users "
            f"only {fewest} are new to one of the users held out and not titled as the "
            f"next item; set --config.data.eval_negatives={fewest} or lower, or bring "
            "a log of more items"
        )


def sample_negatives(
    split: Split,
    indices: Int[np.ndarray, " B"],
    pool: Int32[np.ndarray, " k"],
    title_group: Int32[np.ndarray, " I"],
    *,
    num: int,
    seed: int,
    step: int,
) -> tuple[Int32[np.ndarray, "B M"], Bool[np.ndarray, "B M"]]:
    """M=`num` different items of the pool for each example, and which of them count.

    Items of the user and items with the target's title are excluded. If the pool has
    too few, the rest is item 0 with False in the mask. A row depends only on (seed,
    step, example), not on its batch.
    """
    items = np.zeros((len(indices), num), np.int32)
    mask = np.zeros((len(indices), num), bool)
    for row, i in enumerate(indices):
        rng = rng_for(seed, "negatives", step, int(split.ids[i]))
        drawn = draw_negatives(rng, split, i, pool, title_group, num)
        items[row, : len(drawn)] = drawn
        mask[row, : len(drawn)] = True
    return items, mask
