"""Profiles of many users, one after the other: continuous batching."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from blue.inference import sampling
from blue.inference.generate import Profile, decode_profile
from blue.inference.pad import bucket_for, pad_left
from blue.models import lora
from blue.models.decoder import DecoderConfig, Params
from blue.runtime.sharding import by_batch, put, replicated, to_host
from blue.text.tokenizer import Tokenizer


class Job(NamedTuple):
    """A profile to be written."""

    number: int  # the caller's own, to know the profile by
    example_id: int  # keys the sampling
    prompt: Sequence[int]


class WrittenProfiles(NamedTuple):
    """Profiles that were finished together, and what computing took since the last."""

    profiles: list[tuple[int, Profile]]  # with the numbers of their jobs
    token_slots: int  # computed: prompts with their padding, rows times decode steps
    tokens: int  # of them that were prompt or profile


WriteProfiles = Callable[[Params, Iterable[Job]], Iterator[WrittenProfiles]]


def prompt_lengths(least: int, most: int) -> tuple[int, ...]:
    """Padded lengths, ascending, for prompts of `least` to `most` tokens.

    Each is at most a third longer than the one before, or by 16. So there are few
    programs to compile, and prompts in order of length are padded by about a seventh.
    """
    lengths = [most]
    while True:
        shorter = -(-lengths[0] * 3 // 64) * 16  # three quarters of it, rounded up
        shorter = min(shorter, (lengths[0] - 1) // 16 * 16)
        if shorter < max(least, 1):
            return tuple(lengths)
        lengths.insert(0, shorter)


def make_profile_writer(
    cfg: DecoderConfig,
    tokenizer: Tokenizer,
    mesh: Mesh,
    *,
    batch_size: int,
    refill_size: int,
    lengths: Sequence[int],
    max_tokens: int,
    temperature: float,
    seed: int,
    stage_id: int,
    params_dtype: str,
    dtype: str,
) -> WriteProfiles:
    """(params, jobs) -> profiles as they are finished.

    `batch_size` profiles are written at a time; whenever `refill_size` of them have
    ended, so many new prompts take their place. Jobs are read as they are needed. Give
    them in order of length: a refill pads its prompts to the longest of them. A profile
    is that of `make_generator` of the same seed, stage, example id and prompt.

    lengths: prompts are padded to the next of these, ascending.
    """
    shapes = sampling.SlotShapes(batch_size, max(lengths), max_tokens)
    relayout = sampling.make_relayout(cfg, mesh, params_dtype=params_dtype, dtype=dtype)
    cfg = lora.without(cfg)  # the copy in the decode layout has its adapters merged
    new_slots = sampling.make_new_slots(cfg, mesh, shapes, dtype)
    advance = sampling.make_advance(
        cfg,
        mesh,
        shapes,
        temperature=temperature,
        end_ids=tuple(tokenizer.end_ids),
        dtype=dtype,
    )
    refill = {
        length: sampling.make_refill(
            cfg,
            mesh,
            shapes,
            refill_size=refill_size,
            prompt_tokens=length,
            dtype=dtype,
        )
        for length in lengths
    }
    whole = replicated(mesh)
    seeds = put(np.array([seed, stage_id, 0], np.uint32), whole)

    def to_device(jobs: list[Job], rows: np.ndarray) -> tuple[int, tuple]:
        """The padded length of the prompts of `jobs`, and what a refill takes."""
        length = bucket_for(lengths, max(len(job.prompt) for job in jobs))
        missing = refill_size - len(jobs)
        jobs = jobs + jobs[:1] * missing
        rows = np.append(rows, [batch_size] * missing)  # no such row: dropped
        ids = np.array([job.example_id for job in jobs], np.int32)
        prompt = pad_left([job.prompt for job in jobs], length, tokenizer.pad_id)
        return length, put((*prompt, ids, rows.astype(np.int32)), by_batch(mesh))

    def write(params: Params, jobs: Iterable[Job]) -> Iterator[WrittenProfiles]:
        jobs, decode_params = iter(jobs), relayout(params)
        slots, owner = new_slots(), np.full(batch_size, -1, np.int64)
        token_slots = tokens = 0
        waiting = list(itertools.islice(jobs, refill_size))
        while True:
            free = np.flatnonzero(owner < 0)
            while waiting and len(waiting) <= len(free):
                here, free = free[: len(waiting)], free[len(waiting) :]
                length, new = to_device(waiting, here)
                slots = refill[length](decode_params, slots, *new)
                owner[here] = [job.number for job in waiting]
                token_slots += refill_size * length
                tokens += sum(len(job.prompt) for job in waiting)
                waiting = list(itertools.islice(jobs, refill_size))
            if len(free) == batch_size:
                return
            wanted = len(waiting) or min(batch_size, len(free) + refill_size)
            num_free = put(np.int32(wanted), whole)
            slots, steps = advance(decode_params, slots, num_free, seeds)
            token_slots += batch_size * int(to_host(steps))
            seen = to_host((slots.done, slots.length, slots.tokens))
            ended = np.flatnonzero(seen[0] & (owner >= 0))
            written = []
            for row in ended:
                ids = seen[2][row, : seen[1][row]]
                profile = decode_profile(tokenizer, ids, np.ones(len(ids), bool))
                written.append((int(owner[row]), profile))
            owner[ended] = -1
            tokens += int(seen[1][ended].sum())
            yield WrittenProfiles(written, token_slots, tokens)
            token_slots = tokens = 0

    return write
