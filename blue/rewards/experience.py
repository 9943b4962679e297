"""Experience: a batch of users -> G profiles each, scored by every reward.

Steps two to four of the algorithm, in three calls:

    sampled = write(params, batch, step, sampler)    # the devices sample
    texts = read(sampled, batch, scorer)             # waits for the tokens alone
    experience = score(judge, batch, texts, scorer)  # asks judge and encoder

`Sampler` and `Scorer` hold what stays the same for a run. The caller starts the
reference pass between the first two calls. The devices compute it while the host
decodes the text, then embed while the host prepares the judge's questions. Only text
and scores cross to the host; tokens, masks and log-probabilities stay on the devices
for the update.
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
from jaxtyping import Bool, Float

from blue.inference.embed import TextEncoder
from blue.inference.generate import Profile, decode_profile
from blue.inference.pad import bucket_for, pad_left
from blue.inference.rollout import Rollout
from blue.models.decoder import Params
from blue.rewards import inputs
from blue.rewards.batch import Batch
from blue.rewards.judges import Judge
from blue.rewards.program import Rewards, asks_judge
from blue.runtime.programs import Program
from blue.runtime.sharding import by_batch, put, replicated, to_host
from blue.text.queries import QueryFormat
from blue.text.tokenizer import Tokenizer

# Counting tokens releases the interpreter lock, so threads help. Decoding does not, and
# takes a tenth of the time.
_pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="texts")

Views = dict[str, Float[np.ndarray, "B G E"]]  # the requested ones of inputs.VIEWS


class Sampler(NamedTuple):
    """What `write` needs of a run."""

    relayout: Program  # parameters -> as sampling takes them
    sample: Mapping[int, Callable[..., Rollout]]  # of each prompt bucket
    pad_id: int
    seed: int
    stage_id: int
    mesh: Mesh


class Scorer(NamedTuple):
    """What `read` and `score` need of a run."""

    tokenizer: Tokenizer  # the profiler's
    encoder: TextEncoder
    query_format: QueryFormat
    titles: Sequence[str]  # of the catalogue, as the next
    items: Float[np.ndarray, "items E"]
    ask: Judge
    rewards: Rewards
    mesh: Mesh


class Sampled(NamedTuple):
    """G profiles of every user of a batch: tokens, on the devices."""

    prompt: jax.Array  # [B P]
    prompt_mask: jax.Array
    rollout: Rollout
    started: float  # time.monotonic()


class Texts(NamedTuple):
    """The same profiles as text, while the encoder works on them."""

    profiles: list[list[Profile]]
    mask: Bool[np.ndarray, "B G C"]
    views: Callable[[], Views]  # waits for the encoder
    metrics: dict[str, float]


class Experience(NamedTuple):
    """G scored profiles of every user of a batch."""

    profiles: list[list[Profile]]
    mask: Bool[np.ndarray, "B G C"]
    device_advantages: jax.Array  # [B G], on the devices, as the next
    device_teaching: jax.Array  # [B G]: the profiles in the loss
    advantages: Float[np.ndarray, "B G"]
    total: Float[np.ndarray, "B G"]
    parts: dict[str, Float[np.ndarray, "B G"]]
    metrics: dict[str, float]  # times, and the encoder's padding


def write(params: Params, batch: Batch, step: int, sampler: Sampler) -> Sampled:
    """Starts writing G profiles of every user of the batch; waits for nothing.

    params: the profiler's.
    """
    started = time.monotonic()
    mesh, sample = sampler.mesh, sampler.sample
    length = bucket_for(tuple(sample), max(len(p) for p in batch.prompts))
    padded = pad_left(batch.prompts, length, sampler.pad_id)
    prompt, prompt_mask, ids = put(
        (*padded, batch.ids.astype(np.int32)), by_batch(mesh)
    )
    key = np.array([sampler.seed, sampler.stage_id, step], np.uint32)
    seeds = put(key, replicated(mesh))
    rollout = sample[length](sampler.relayout(params), prompt, prompt_mask, ids, seeds)
    return Sampled(prompt, prompt_mask, rollout, started)


def read(sampled: Sampled, batch: Batch, scorer: Scorer) -> Texts:
    """Decodes the tokens and starts the encoder.

    Waits only for the sampling.
    """
    tokens, mask = to_host((sampled.rollout.tokens, sampled.rollout.mask))
    arrived = time.monotonic()
    before = dict(scorer.encoder.slot_counts or {"slots": 0, "tokens": 0})
    profiles = [
        [decode_profile(scorer.tokenizer, t, m) for t, m in zip(*group, strict=True)]
        for group in zip(tokens, mask, strict=True)
    ]
    views = start_embedding(
        profiles, batch, scorer.encoder, scorer.query_format, scorer.rewards.used
    )
    metrics = {
        "time/rollout_s": arrived - sampled.started,
        "time/text_s": time.monotonic() - arrived,
    }
    slot_counts = scorer.encoder.slot_counts or before
    slots = slot_counts["slots"] - before["slots"]
    if slots:
        used = slot_counts["tokens"] - before["tokens"]
        metrics["speed/encoder_padding"] = 1 - used / slots
    return Texts(profiles, mask, views, metrics)


def start_embedding(
    profiles: Sequence[Sequence[Profile]],
    batch: Batch,
    encoder: TextEncoder,
    query_format: QueryFormat,
    wanted: frozenset[str],
) -> Callable[[], Views]:
    """Starts to embed the wanted views of the profiles. The function it returns waits
    for their vectors. wanted: names of inputs; those that are no views are ignored."""
    pairs = [(b, p.text) for b, group in enumerate(profiles) for p in group]
    names = [name for name in inputs.VIEWS if name in wanted]
    text_of = lambda name, pair: inputs.VIEWS[name](
        query_format, batch.histories[pair[0]], pair[1]
    )
    texts = [
        text
        for name in names
        for text in _pool.map(functools.partial(text_of, name), pairs)
    ]
    ready = encoder.start(texts)
    shape = len(names), len(profiles), len(profiles[0]), encoder.width
    return lambda: dict(zip(names, ready().reshape(shape), strict=True))


def score(
    judge: Params | None, batch: Batch, texts: Texts, scorer: Scorer
) -> Experience:
    """Rewards and advantages of the profiles of a batch.

    judge: the judge's parameters; None omits the rewards that need its answers from
    `parts`. A profile that the encoder or the judge could not score has the reward NaN
    and is left out of the loss. An empty profile is scored like any other.
    """
    started = time.monotonic()
    rewards, profiles = scorer.rewards, texts.profiles
    ask = None if judge is None else functools.partial(scorer.ask, judge)
    context = inputs.Context(batch, profiles, scorer.titles, scorer.items, ask, {})
    (arrays,) = rewards.program.args  # abstract arrays, replaced below
    judged = rewards.used.intersection(inputs.JUDGED)
    found = {n: inputs.compute(n, context, arrays[n]) for n in judged if ask}
    answered = time.monotonic()
    context = context._replace(views=texts.views())
    embed_s = time.monotonic() - answered
    rest = rewards.used.difference(inputs.JUDGED)
    found |= {n: inputs.compute(n, context, arrays[n]) for n in rest}
    # unused inputs are zeros
    zeros = {n: np.zeros(x.shape, x.dtype) for n, x in arrays.items() if n not in found}
    device_advantages, device_teaching, total, parts = rewards.program(
        put(found | zeros, by_batch(scorer.mesh))
    )
    advantages, total, parts = to_host((device_advantages, total, parts))
    if judge is None:
        asking = rewards.by_name.items()
        parts = {n: parts[n] for n, reward in asking if not asks_judge(reward)}
    metrics = texts.metrics | {
        "time/reward_s": time.monotonic() - started,
        "time/embed_s": embed_s,  # of which waiting for the encoder
    }
    return Experience(
        profiles, texts.mask, device_advantages, device_teaching, advantages, total,
        parts, metrics,
    )  # fmt: skip
