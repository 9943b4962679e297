"""Experience: a batch of users -> G profiles each, scored by every reward.

Steps two to four of the algorithm: sample a group of profiles for every user, embed
them in both views, ask the reader, and turn rewards into advantages. Text crosses the
host once; tokens, masks and log-probabilities stay on the devices for the update.

It comes in three parts, `write`, `read` and `score`. Between the first two the caller
asks the devices for the reference pass: they work on it while the host reads, and then
on the encoder's texts, while the host makes the reader's.
"""

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from blue.data.batches import in_batch_mask, next_items
from blue.data.examples import Examples, Split, history
from blue.data.log import Log
from blue.data.negatives import sample_negatives
from blue.errors import UserError
from blue.inference.embed import TextEncoder
from blue.inference.generate import Profile, decode_profile
from blue.inference.pad import bucket_for, pad_left
from blue.inference.rollout import Rollout
from blue.models.decoder import Params
from blue.rewards.functions import RewardInputs
from blue.runtime import programs
from blue.runtime.sharding import by_batch, put, replicated, to_host
from blue.text import queries
from blue.text.rule_profiles import profile_word_stats
from blue.text.tokenizer import Tokenizer

Choose = Callable[[Params, list[str], list[list[str]]], np.ndarray]

# Counting tokens leaves the interpreter free for other threads. Detokenising does not
# and takes a tenth of the time: threads would not help it.
_pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="texts")


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


class Written(NamedTuple):
    """G profiles of every user of a batch: tokens, on the devices."""

    prompt: jax.Array  # [B P]
    prompt_mask: jax.Array
    rollout: Rollout
    started: float  # time.monotonic()


class Read(NamedTuple):
    """The same as text, on its way through the encoder."""

    profiles: list[list[Profile]]
    mask: Bool[np.ndarray, "B G C"]
    vectors: Callable[[], Float[np.ndarray, "2 B G E"]]  # waits; both views
    metrics: dict[str, float]


class Experience(NamedTuple):
    """G scored profiles of every user of a batch."""

    profiles: list[list[Profile]]
    mask: Bool[np.ndarray, "B G C"]
    device_advantages: jax.Array  # [B G], on the devices, as the next
    device_teaching: jax.Array  # [B G]: the profiles that were scored, with another
    advantages: Float[np.ndarray, "B G"]
    total: Float[np.ndarray, "B G"]
    parts: dict[str, Float[np.ndarray, "B G"]]
    metrics: dict[str, float]  # times, and the encoder's padding


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


def start_embedding(
    profiles: Sequence[Sequence[Profile]],
    batch: Batch,
    *,
    encoder: TextEncoder,
    query_format: queries.QueryFormat,
    view_weights: tuple[float, float],
) -> Callable[[], Float[np.ndarray, "2 B G E"]]:
    """Gives both views to the encoder; what it returns waits for their vectors.

    The views are history + profile and profile alone. One of weight 0 enters no reward:
    it is not embedded and its vectors are zeros.
    """
    pairs = [(b, p.text) for b, group in enumerate(profiles) for p in group]
    views = (
        lambda pair: queries.history_profile_query(
            query_format, batch.histories[pair[0]], pair[1]
        ),
        lambda pair: queries.profile_query(query_format, pair[1]),
    )
    needed = [v for v, weight in enumerate(view_weights) if weight]
    texts = [text for v in needed for text in _pool.map(views[v], pairs)]
    ready = encoder.start(texts)
    shape = len(profiles), len(profiles[0]), encoder.width

    def vectors() -> Float[np.ndarray, "2 B G E"]:
        out = np.zeros((len(views), *shape), np.float32)
        out[needed] = ready().reshape(len(needed), *shape)
        return out

    return vectors


def ask_reader(
    profiles: Sequence[Sequence[Profile]],
    batch: Batch,
    choose: Callable[[list[str], list[list[str]]], np.ndarray] | None,
    titles: list[str],
) -> Float[np.ndarray, "B G O"]:
    """The reader's score of each option from the profile alone; zeros without one."""
    B, G, O = len(profiles), len(profiles[0]), batch.options.shape[1]  # noqa: E741
    if choose is None:
        return np.zeros((B, G, O), np.float32)
    pairs = [(b, p.text) for b, group in enumerate(profiles) for p in group]
    shown = [[titles[i] for i in batch.options[b]] for b, _ in pairs]
    scores = choose([text for _, text in pairs], shown)
    return scores.reshape(B, G, O).astype(np.float32)


def reward_inputs(
    profiles: Sequence[Sequence[Profile]],
    batch: Batch,
    *,
    vectors: Float[np.ndarray, "2 B G E"],
    choice_scores: Float[np.ndarray, "B G O"],
    items: Float[np.ndarray, "items E"],
    mesh: Mesh,
) -> RewardInputs:
    """What rewards look at, on the devices."""
    B, G = len(profiles), len(profiles[0])
    stats = [profile_word_stats(p.text, []) for row in profiles for p in row]
    words = [1.0 - s["distinct"] if s["words"] else 0.0 for s in stats]
    inputs = dict(
        history_profile_emb=vectors[0],
        profile_emb=vectors[1],
        next_item_emb=np.asarray(items[batch.next_items]),
        next_item_mask=batch.next_item_mask,
        negative_emb=np.asarray(items[batch.negatives]),
        negative_mask=batch.negative_mask,
        in_batch_mask=batch.in_batch_mask,
        choice_scores=choice_scores,
        choice_answer=batch.answer.astype(np.float32),
        finished=np.array([[p.finished for p in group] for group in profiles]),
        repeated_words=np.array(words, np.float32).reshape(B, G),
    )
    return RewardInputs(**put(inputs, by_batch(mesh)))


def write(
    params: Params,
    batch: Batch,
    step: int,
    *,
    relayout: programs.Program,
    sample: Mapping[int, Callable[..., Rollout]],
    pad_id: int,
    seed: int,
    stage_id: int,
    mesh: Mesh,
) -> Written:
    """Has the devices write G profiles of every user of the batch; waits for nothing.

    params: the profiler's. sample: the compiled sampler of each prompt bucket.
    """
    started = time.monotonic()
    length = bucket_for(tuple(sample), max(len(p) for p in batch.prompts))
    padded = pad_left(batch.prompts, length, pad_id)
    prompt, prompt_mask, ids = put(
        (*padded, batch.ids.astype(np.int32)), by_batch(mesh)
    )
    seeds = put(np.array([seed, stage_id, step], np.uint32), replicated(mesh))
    rollout = sample[length](relayout(params), prompt, prompt_mask, ids, seeds)
    return Written(prompt, prompt_mask, rollout, started)


def read(
    written: Written,
    batch: Batch,
    *,
    encoder: TextEncoder,
    query_format: queries.QueryFormat,
    view_weights: tuple[float, float],
    tokenizer: Tokenizer,
) -> Read:
    """Turns tokens into text and gives it to the encoder.

    Waits for the sampling alone. view_weights: of history + profile and of profile
    alone, in the embedding reward. tokenizer: the profiler's.
    """
    tokens, mask = to_host((written.rollout.tokens, written.rollout.mask))
    sampled = time.monotonic()
    before = dict(encoder.spent or {"slots": 0, "tokens": 0})
    profiles = [
        [decode_profile(tokenizer, t, m) for t, m in zip(*group, strict=True)]
        for group in zip(tokens, mask, strict=True)
    ]
    vectors = start_embedding(
        profiles,
        batch,
        encoder=encoder,
        query_format=query_format,
        view_weights=view_weights,
    )
    metrics = {
        "time/rollout_s": sampled - written.started,
        "time/text_s": time.monotonic() - sampled,
    }
    spent = encoder.spent or before
    slots = spent["slots"] - before["slots"]
    if slots:
        used = spent["tokens"] - before["tokens"]
        metrics["speed/encoder_padding"] = 1 - used / slots
    return Read(profiles, mask, vectors, metrics)


def score(
    reader: Params | None,
    batch: Batch,
    texts: Read,
    *,
    rewards: programs.Program,
    choose: Choose,
    items: Float[np.ndarray, "items E"],
    titles: list[str],
    mesh: Mesh,
) -> Experience:
    """Rewards and advantages of the profiles of a batch.

    reader: the parameters that answer the multiple choice; None leaves the question out
    of `parts`. A profile that the encoder or the reader could not score has the reward
    NaN and teaches nothing; an empty one is scored like any other.
    """
    started = time.monotonic()
    profiles = texts.profiles
    ask = None if reader is None else functools.partial(choose, reader)
    choice_scores = ask_reader(profiles, batch, ask, titles)
    answered = time.monotonic()
    vectors = texts.vectors()
    embed_s = time.monotonic() - answered
    inputs = reward_inputs(
        profiles,
        batch,
        vectors=vectors,
        choice_scores=choice_scores,
        items=items,
        mesh=mesh,
    )
    advantages, teaching, total, parts = rewards(inputs)
    host_advantages, host_total, host_parts = to_host((advantages, total, parts))
    if reader is None:
        host_parts.pop("choice")
    metrics = texts.metrics | {
        "time/reward_s": time.monotonic() - started,
        "time/embed_s": embed_s,  # of it, spent waiting for the encoder
    }
    return Experience(
        profiles, texts.mask, advantages, teaching,
        host_advantages, host_total, host_parts, metrics,
    )  # fmt: skip
