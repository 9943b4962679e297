"""Profiles of many users, one after the other: continuous batching."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from blue.inference import sampling
from blue.inference.generate import Profile, decode_profile, plain_sampling
from blue.inference.pad import bucket_for, pad_left
from blue.inference.rollout import Slots
from blue.models import lora
from blue.models.decoder import DecoderConfig, Params
from blue.runtime.programs import Program
from blue.runtime.shapes import Precision, Sampling, Shapes
from blue.runtime.sharding import by_batch, put, replicated, to_host
from blue.text.tokenizer import Tokenizer


class Job(NamedTuple):
    """A profile to be written."""

    number: int  # the caller's, to identify the profile
    example_id: int  # keys the sampling
    prompt: Sequence[int]


class WrittenProfiles(NamedTuple):
    """Profiles that finished together, and the tokens computed since the last ones."""

    profiles: list[tuple[int, Profile]]  # with the numbers of their jobs
    token_slots: int  # computed: prompts with their padding, rows times decode steps
    tokens: int  # of them that were prompt or profile


WriteProfiles = Callable[[Params, Iterable[Job]], Iterator[WrittenProfiles]]


def prompt_lengths(least: int, most: int) -> tuple[int, ...]:
    """Padded lengths, ascending, for prompts of `least` to `most` tokens.

    Each is longer than the one before by at most a third or 16. So few programs are
    compiled, and sorted prompts are padded by about a seventh.
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
    shapes: Shapes,
    precision: Precision,
    *,
    refills: Sequence[Shapes],
    temperature: float,
    key: tuple[int, int],
) -> WriteProfiles:
    """(params, jobs) -> profiles as they are finished.

    `shapes` has one row for each profile under way. When as many rows have ended as a
    refill has, new prompts take their place. Jobs are read when needed. Sort them by
    length: a refill pads its prompts to the longest of them. Profiles equal those of
    `make_generator` for the same key, example id and prompt.

    Args:
      shapes: of the rows that are decoded, with the longest prompt.
      refills: of the new prompts, by their padded length, ascending; else alike.
      key: seed and number of the stage, as in `make_generator`.
    """
    draws = plain_sampling(tokenizer, temperature)
    programs = make_slot_programs(cfg, mesh, shapes, precision, refills, draws)
    seeds = put(np.array([*key, 0], np.uint32), replicated(mesh))
    lengths = tuple(programs.refill)
    batch_size, refill_size = shapes.batch, refills[0].batch

    def write(params: Params, jobs: Iterable[Job]) -> Iterator[WrittenProfiles]:
        jobs, decode_params = iter(jobs), programs.relayout(params)
        slots, owner = programs.new_slots(), np.full(batch_size, -1, np.int64)
        token_slots = tokens = 0
        waiting = list(itertools.islice(jobs, refill_size))
        while True:
            free = np.flatnonzero(owner < 0)
            while waiting and len(waiting) <= len(free):
                here, free = free[: len(waiting)], free[len(waiting) :]
                length = bucket_for(lengths, max(len(job.prompt) for job in waiting))
                missing = refill_size - len(waiting)
                rows = np.append(here, [batch_size] * missing)  # no such row: ignored
                padded = pad_jobs(waiting + waiting[:1] * missing, length, tokenizer)
                new = put((*padded, rows.astype(np.int32)), by_batch(mesh))
                slots = programs.refill[length](decode_params, slots, *new)
                owner[here] = [job.number for job in waiting]
                token_slots += refill_size * length
                tokens += sum(len(job.prompt) for job in waiting)
                waiting = list(itertools.islice(jobs, refill_size))
            if len(free) == batch_size:
                return
            wanted = len(waiting) or min(batch_size, len(free) + refill_size)
            num_free = put(np.int32(wanted), replicated(mesh))
            slots, steps = programs.advance(decode_params, slots, num_free, seeds)
            token_slots += batch_size * int(to_host(steps))
            profiles = take_ended(slots, owner, tokenizer)
            tokens += sum(profile.num_tokens for _, profile in profiles)
            yield WrittenProfiles(profiles, token_slots, tokens)
            token_slots = tokens = 0

    return write


class SlotPrograms(NamedTuple):
    """The programs of continuous batching."""

    relayout: Program
    new_slots: Program
    refill: dict[int, Program]  # by the padded length of the new prompts
    advance: Program


def make_slot_programs(
    cfg: DecoderConfig,
    mesh: Mesh,
    shapes: Shapes,
    precision: Precision,
    refills: Sequence[Shapes],
    draws: Sampling,
) -> SlotPrograms:
    """Compiles the programs; `shapes` and `refills` as in `make_profile_writer`."""
    plain = lora.without(cfg)  # the copy in the decode layout has its adapters merged
    dtype = precision.compute
    return SlotPrograms(
        relayout=sampling.make_relayout(cfg, mesh, precision),
        new_slots=sampling.make_new_slots(plain, mesh, shapes, dtype),
        refill={
            new.prompt: sampling.make_refill(plain, mesh, shapes, new, dtype)
            for new in refills
        },
        advance=sampling.make_advance(plain, mesh, shapes, draws, dtype),
    )


def pad_jobs(
    jobs: Sequence[Job], length: int, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompts [N, length], their mask, example ids [N]."""
    tokens, mask = pad_left([job.prompt for job in jobs], length, tokenizer.pad_id)
    return tokens, mask, np.array([job.example_id for job in jobs], np.int32)


def take_ended(
    slots: Slots, owner: Int[np.ndarray, " B"], tokenizer: Tokenizer
) -> list[tuple[int, Profile]]:
    """The profiles that have ended, with their jobs' numbers. Frees their rows.

    owner: number of the job of each row, -1 for a free one; changed in place.
    """
    done, length, tokens = to_host((slots.done, slots.length, slots.tokens))
    profiles = []
    for row in np.flatnonzero(done & (owner >= 0)):
        ids = tokens[row, : length[row]]
        profile = decode_profile(tokenizer, ids, np.ones(len(ids), bool))
        profiles.append((int(owner[row]), profile))
        owner[row] = -1
    return profiles
