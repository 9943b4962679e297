"""Experience: a batch of users -> G profiles each, scored by every reward.

Steps two to four of the algorithm: sample a group of profiles for every user, embed
them in both views, ask the reader, and turn rewards into advantages. Text crosses the
host once; tokens, masks and log-probabilities stay on the devices for the update.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from blue import inference, programs, prompts, queries
from blue.data.examples import (
    Examples,
    Split,
    history,
    in_batch_mask,
    next_items,
    sample_negatives,
)
from blue.data.log import Log
from blue.errors import UserError
from blue.inference import Profile
from blue.models.decoder import Params
from blue.rewards import RewardInputs
from blue.rollout import Rollout
from blue.sharding import by_batch, put, replicated, to_host
from blue.tokenizer import Tokenizer

Choose = Callable[[Params, list[str], list[list[str]]], np.ndarray]


class Batch(NamedTuple):
    """B examples as a step needs them, on the host."""

    histories: list[list[str]]  # titles, oldest first
    prompts: list[list[int]]
    ids: Int[np.ndarray, " B"]  # key the sampling
    users: list[str]
    next_items: Int[np.ndarray, "B K"]  # the target, then more of the same history
    next_item_mask: Bool[np.ndarray, "B K"]
    negatives: Int[np.ndarray, "B M"]
    negative_mask: Bool[np.ndarray, "B M"]
    in_batch_mask: Bool[np.ndarray, "B K B"]
    options: Int[np.ndarray, "B O"]  # items of the multiple choice, shuffled
    answer: Int[np.ndarray, "B O"]  # 1 at the next item


class Experience(NamedTuple):
    """G scored profiles of every user of a batch."""

    prompt: jax.Array  # [B P], on the devices, as the next four
    prompt_mask: jax.Array
    rollout: Rollout
    device_advantages: jax.Array
    profiles: list[list[Profile]]
    mask: Bool[np.ndarray, "B G C"]
    advantages: Float[np.ndarray, "B G"]
    total: Float[np.ndarray, "B G"]
    parts: dict[str, Float[np.ndarray, "B G"]]
    times: dict[str, float]


def make_batch(
    split: Split,
    indices: Int[np.ndarray, " B"],
    examples: Examples,
    log: Log,
    prompt_format: queries.PromptFormat,
    *,
    num_negatives: int,
    num_options: int,
    seed: int,
    step: int,
) -> Batch:
    """Examples -> prompts, negatives and options, shared by each user's group.

    Keyed by (seed, step, example), so how examples are batched does not matter.
    """
    groups = examples.title_group
    negatives, negative_mask = sample_negatives(
        split, indices, examples.pool, groups, num=num_negatives, seed=seed, step=step
    )
    if not negative_mask[:, : num_options - 1].all():
        raise UserError(
            f"rewards.choice.num_options = {num_options}: an example has fewer than "
            f"{num_options - 1} items to choose among that its user never touched"
        )
    items, item_mask = next_items(split, indices)
    options = np.concatenate([items[:, :1], negatives[:, : num_options - 1]], axis=1)
    ids = split.ids[indices]
    order = np.stack(
        [
            np.random.default_rng([seed, step, int(i)]).permutation(num_options)
            for i in ids
        ]
    )
    return Batch(
        histories=[[log.titles[i] for i in history(split, int(r))[0]] for r in indices],
        prompts=queries.profile_prompts(prompt_format, split, indices, log.titles),
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


def reward_inputs(
    profiles: Sequence[Sequence[Profile]],
    batch: Batch,
    *,
    embed: inference.Embed,
    items: Float[np.ndarray, "items E"],
    choose: Callable[[list[str], list[list[str]]], np.ndarray] | None,
    titles: list[str],
    query_format: queries.QueryFormat,
    mesh: Mesh,
) -> RewardInputs:
    """Embeds the profiles in both views and asks the reader, once; on the devices."""
    B, G = len(profiles), len(profiles[0])
    pairs = [(b, p.text) for b, group in enumerate(profiles) for p in group]
    both = [
        queries.history_profile_query(query_format, batch.histories[b], text)
        for b, text in pairs
    ]
    alone = [queries.profile_query(query_format, text) for _, text in pairs]
    vectors = embed(both + alone).reshape(2, B, G, -1)
    scores = np.zeros((B * G, batch.options.shape[1]), np.float32)
    if choose is not None:
        shown = [[titles[i] for i in batch.options[b]] for b, _ in pairs]
        scores = choose([text for _, text in pairs], shown)
    stats = [prompts.profile_word_stats(text, []) for _, text in pairs]
    words = [1.0 - s["distinct"] if s["words"] else 0.0 for s in stats]
    inputs = dict(
        history_profile_emb=vectors[0],
        profile_emb=vectors[1],
        next_item_emb=np.asarray(items[batch.next_items]),
        next_item_mask=batch.next_item_mask,
        negative_emb=np.asarray(items[batch.negatives]),
        negative_mask=batch.negative_mask,
        in_batch_mask=batch.in_batch_mask,
        choice_scores=scores.reshape(B, G, -1).astype(np.float32),
        choice_answer=batch.answer.astype(np.float32),
        finished=np.array([[p.finished for p in group] for group in profiles]),
        repeated_words=np.array(words, np.float32).reshape(B, G),
    )
    return RewardInputs(**put(inputs, by_batch(mesh)))


def gather(
    params: Params,
    reader: Params | None,
    batch: Batch,
    step: int,
    *,
    relayout: programs.Program,
    sample: Mapping[int, programs.Program],
    score: programs.Program,
    choose: Choose,
    embed: inference.Embed,
    items: Float[np.ndarray, "items E"],
    titles: list[str],
    query_format: queries.QueryFormat,
    tokenizer: Tokenizer,
    seed: int,
    stage_id: int,
    mesh: Mesh,
) -> Experience:
    """Writes and scores the profiles of one batch with the profiler's `params`.

    sample: the compiled sampler of each prompt bucket. reader: the parameters that
    answer the multiple choice; None leaves the question out of `parts`.
    """
    started = time.monotonic()
    length = inference.bucket_for(tuple(sample), max(len(p) for p in batch.prompts))
    padded = inference.pad_left(batch.prompts, length, tokenizer.pad_id)
    prompt, prompt_mask, ids = put(
        (*padded, batch.ids.astype(np.int32)), by_batch(mesh)
    )
    seeds = put(np.array([seed, stage_id, step], np.uint32), replicated(mesh))
    rollout = sample[length](relayout(params), prompt, prompt_mask, ids, seeds)
    tokens, mask = to_host((rollout.tokens, rollout.mask))
    sampled = time.monotonic()
    profiles = [
        [inference.decode_profile(tokenizer, t, m) for t, m in zip(*group, strict=True)]
        for group in zip(tokens, mask, strict=True)
    ]
    inputs = reward_inputs(
        profiles,
        batch,
        embed=embed,
        items=items,
        choose=None if reader is None else lambda p, o: choose(reader, p, o),
        titles=titles,
        query_format=query_format,
        mesh=mesh,
    )
    advantages, total, parts = score(inputs)
    host_advantages, host_total, host_parts = to_host((advantages, total, parts))
    if reader is None:
        host_parts.pop("choice")
    times = {
        "time/rollout_s": sampled - started,
        "time/reward_s": time.monotonic() - sampled,
    }
    return Experience(
        prompt, prompt_mask, rollout, advantages,
        profiles, mask, host_advantages, host_total, host_parts, times,
    )  # fmt: skip
