"""A batch of users as a GRPO step needs it: prompts, negatives, options."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from blue.data.batches import in_batch_mask, next_items
from blue.data.examples import Examples, Split, history
from blue.data.log import Log
from blue.data.negatives import sample_negatives
from blue.errors import UserError
from blue.text import queries


class Batch(NamedTuple):
    """B examples, on the host."""

    histories: list[list[str]]  # titles, oldest first
    prompts: list[list[int]]
    ids: Int[np.ndarray, " B"]  # key the sampling
    users: list[str]
    next_items: Int[np.ndarray, "B K"]  # the target, then others that follow
    next_item_mask: Bool[np.ndarray, "B K"]
    negatives: Int[np.ndarray, "B M"]
    negative_mask: Bool[np.ndarray, "B M"]
    in_batch_mask: Bool[np.ndarray, "B K B"]  # [u k w]: is w compared with u's k?
    options: Int[np.ndarray, "B O"]  # items of the multiple choice, shuffled
    answer: Int[np.ndarray, "B O"]  # 1 at the next item


class BatchSource(NamedTuple):
    """What the batches of a run are made from."""

    examples: Examples
    log: Log
    prompt_format: queries.PromptFormat
    num_negatives: int  # M
    num_options: int  # O, of the multiple choice
    seed: int


def make_batch(
    split: Split, indices: Int[np.ndarray, " B"], step: int, source: BatchSource
) -> Batch:
    """Examples -> prompts, negatives and options, shared by each user's group.

    Keyed by (seed, step, example), so how examples are batched does not matter.
    """
    log, num_options, seed = source.log, source.num_options, source.seed
    pool, groups = source.examples.pool, source.examples.title_group
    M = source.num_negatives
    negatives, negative_mask = sample_negatives(
        split, indices, pool, groups, num=M, seed=seed, step=step
    )
    if not negative_mask[:, : num_options - 1].all():
        raise UserError(
            f"rewards.choice.num_options = {num_options}: an example has fewer than "
            f"{num_options - 1} items to choose among that its user never touched"
        )
    items, item_mask = next_items(split, indices)
    options = np.concatenate([items[:, :1], negatives[:, : num_options - 1]], axis=1)
    ids = split.ids[indices]
    rngs = [np.random.default_rng([seed, step, int(i)]) for i in ids]
    order = np.stack([rng.permutation(num_options) for rng in rngs])
    titles = log.titles
    return Batch(
        histories=[[titles[i] for i in history(split, int(r))[0]] for r in indices],
        prompts=queries.profile_prompts(source.prompt_format, split, indices, titles),
        ids=ids,
        users=[log.user_ids[u] for u in split.user[indices]],
        next_items=items,
        next_item_mask=item_mask,
        negatives=negatives,
        negative_mask=negative_mask,
        in_batch_mask=in_batch_mask(split, indices, groups),
        options=np.take_along_axis(options, order, axis=1),
        answer=(order == 0).astype(np.int32),
    )
