"""Text in, text or vectors out: the compiled programs behind plain host functions.

Each `make_*` compiles its programs for fixed shapes, once; what it returns pads, sorts
by length, calls, and puts the answers back in order.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from blue import flops, packing, sampling, scoring
from blue.errors import UserError
from blue.hub import Source
from blue.models import lora
from blue.models.decoder import DecoderConfig, Params
from blue.sharding import by_batch, put, replicated, to_host
from blue.tokenizer import Tokenizer
from blue.writer import told_slices


class Model(NamedTuple):
    """A model with its parameters on the mesh, and the tokenizer it was made for."""

    cfg: DecoderConfig
    params: Params
    tokenizer: Tokenizer
    name: str
    step: int = 0  # of the stage that trained it
    origin: str = ""  # what adapters.py knows a base by; empty: its parameters tell
    source: Source = Source()  # of the weights it began with


class Profile(NamedTuple):
    """A generated profile."""

    text: str
    num_tokens: int
    finished: bool  # an end token was sampled


Embed = Callable[[Sequence[str]], np.ndarray]


class TextEncoder(NamedTuple):
    """Whoever turns texts into vectors: for rewards, evaluation and the item table."""

    embed: Embed  # texts -> unit vectors [n E] float32, in order
    # texts -> a function that waits for their vectors, NaN for those that have none;
    # the encoder is at work by then
    start: Callable[[Sequence[str]], Callable[[], np.ndarray]]
    num_tokens: Callable[[str], int]  # of a text as the encoder reads it
    max_tokens: int  # longer texts lose their end
    width: int  # E
    name: str
    fingerprint: str  # the same vectors for the same texts: keys them on disk
    query_prompt: str | None = None  # its own before queries; None: it does not say
    weights: int | None = None  # `fingerprint` of our own parameters
    spent: Mapping[str, int] | None = None  # as in `Embedder`; None: it does not say


def pad_left(
    rows: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Right-aligned tokens [n, length] int32 and their mask."""
    tokens = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        if row:
            tokens[i, length - len(row) :] = row
            mask[i, length - len(row) :] = True
    return tokens, mask


def pad_right(
    rows: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Left-aligned tokens [n, length] int32 and their mask: targets and completions."""
    tokens = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        mask[i, : len(row)] = True
    return tokens, mask


def bucket_for(buckets: Sequence[int], length: int) -> int:
    """The smallest bucket that holds `length` tokens."""
    for bucket in buckets:
        if length <= bucket:
            return bucket
    raise UserError(f"{length} tokens do not fit the largest of {tuple(buckets)}")


def decode_profile(
    tokenizer: Tokenizer, tokens: np.ndarray, mask: np.ndarray
) -> Profile:
    """Text of one completion [C]; ids the tokenizer lacks (padded heads) drop out."""
    ids = tokens[mask].tolist()
    finished = bool(ids) and ids[-1] in tokenizer.end_ids
    known = [i for i in ids if i < tokenizer.vocab_size]
    return Profile(tokenizer.decode(known).strip(), len(ids), finished)


class Embedder(NamedTuple):
    """Texts -> vectors with our own encoder, whose parameters come first."""

    # unit vectors [n E] float32, in the order of the texts
    embed: Callable[[Params, Sequence[str]], np.ndarray]
    # the same in two: all is on its way to the devices when it returns
    start: Callable[[Params, Sequence[str]], Callable[[], np.ndarray]]
    spent: dict[str, int]  # so far: "slots" that were computed, "tokens" in them


def make_embedder(
    cfg: DecoderConfig,
    tokenizer: Tokenizer,
    mesh: Mesh,
    *,
    lengths: Sequence[int],
    max_tokens: int,
    batch_size: int,
    params_dtype: str,
    dtype: str,
) -> Embedder:
    """Compiles a program for each of `lengths`, slots of a row; a batch has
    `batch_size` rows, and as many texts as they hold (packing.py).

    Texts of more than `max_tokens` lose their end; the pooling token stays. Equal texts
    are embedded once, so that their vectors are equal to the bit.
    """
    run = {
        length: scoring.make_embed(
            cfg,
            mesh,
            batch_size=batch_size,
            tokens=length,
            texts=packing.texts_a_row(length),
            params_dtype=params_dtype,
            dtype=dtype,
        )
        for length in lengths
    }
    spent = {"slots": 0, "tokens": 0}

    def start(params: Params, texts: Sequence[str]) -> Callable[[], np.ndarray]:
        place: dict[tuple[int, ...], int] = {}
        of_text = np.zeros(len(texts), np.int64)
        for n, ids in enumerate(tokenizer.pooled_batch(texts)):
            ids = ids if len(ids) <= max_tokens else ids[: max_tokens - 1] + ids[-1:]
            of_text[n] = place.setdefault(tuple(ids), len(place))
        batches = packing.pack(
            list(place),
            lengths=lengths,
            rows=batch_size,
            cost=lambda length: flops.encode(cfg, batch_size, length),
            pad_id=tokenizer.pad_id,
        )
        waiting = []
        for rows in batches:
            length = rows.tokens.shape[1]
            on_devices = put(tuple(rows[:5]), by_batch(mesh))
            waiting.append((rows.text, run[length](params, *on_devices)))
            spent["slots"] += rows.tokens.size
            spent["tokens"] += rows.used

        def vectors() -> np.ndarray:
            out = np.zeros((len(place), cfg.width), np.float32)
            for text, found in waiting:
                known = text >= 0
                out[text[known]] = to_host(found)[known]
            return out[of_text]

        return vectors

    embed = lambda params, texts: start(params, texts)()
    return Embedder(embed, start, spent)


def make_generator(
    cfg: DecoderConfig,
    tokenizer: Tokenizer,
    mesh: Mesh,
    *,
    batch_size: int,
    buckets: Sequence[int],
    max_tokens: int,
    temperature: float,
    seed: int,
    stage_id: int,
    params_dtype: str,
    dtype: str,
) -> Callable[[Params, Sequence[Sequence[int]], Sequence[int]], list[Profile]]:
    """(params, prompts, example ids) -> one profile each, in order.

    Sampling is keyed by (seed, stage, example), not by how prompts are batched.
    """
    relayout = sampling.make_relayout(cfg, mesh, params_dtype=params_dtype, dtype=dtype)
    cfg = lora.without(cfg)  # the copy in the decode layout has its adapters merged
    run = {
        length: sampling.make_sample(
            cfg,
            mesh,
            batch_size=batch_size,
            prompt_tokens=length,
            group_size=1,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            end_ids=tuple(tokenizer.end_ids),
            pad_id=tokenizer.pad_id,
            dtype=dtype,
        )
        for length in buckets
    }
    seeds = put(np.array([seed, stage_id, 0], np.uint32), replicated(mesh))

    def generate(
        params: Params, prompt_ids: Sequence[Sequence[int]], ids: Sequence[int]
    ) -> list[Profile]:
        decode_params = relayout(params)
        out: list[Any] = [None] * len(prompt_ids)
        order = sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]))
        for members in told_slices(
            len(order), batch_size, name="profiles", unit="profile"
        ):
            part = order[members]
            padded = part + [part[0]] * (batch_size - len(part))
            rows = [prompt_ids[i] for i in padded]
            length = bucket_for(buckets, max(len(r) for r in rows))
            tokens, mask = pad_left(rows, length, tokenizer.pad_id)
            keys = np.array([ids[i] for i in padded], np.int32)
            batch = put((tokens, mask, keys), by_batch(mesh))
            rollout = to_host(run[length](decode_params, *batch, seeds))
            for row, i in enumerate(part):
                out[i] = decode_profile(
                    tokenizer, rollout.tokens[row, 0], rollout.mask[row, 0]
                )
        return out

    return generate


# --- profiles of many users, one after the other


class Job(NamedTuple):
    """A profile to be written."""

    number: int  # the caller's own, to know the profile by
    example_id: int  # keys the sampling
    prompt: Sequence[int]


class Written(NamedTuple):
    """Profiles that were finished together, and what computing took since the last."""

    profiles: list[tuple[int, Profile]]  # with the numbers of their jobs
    token_slots: int  # computed: prompts with their padding, rows times decode steps
    tokens: int  # of them that were prompt or profile


WriteProfiles = Callable[[Params, Iterable[Job]], Iterator[Written]]


def prompt_lengths(least: int, most: int) -> tuple[int, ...]:
    """Padded lengths, ascending, for prompts of `least` to `most` tokens.

    Each is at most a third longer than the one before, or by 16: a few programs to
    compile, and prompts in order of length are padded by about a seventh.
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
    ended, so many new prompts take their place. Jobs are read as they are needed; those
    that come together should be of about one length. A profile is that of
    `make_generator` of the same seed, stage, example id and prompt.

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
        rows = np.append(rows, [batch_size] * missing)  # which is no row
        ids = np.array([job.example_id for job in jobs], np.int32)
        prompt = pad_left([job.prompt for job in jobs], length, tokenizer.pad_id)
        return length, put((*prompt, ids, rows.astype(np.int32)), by_batch(mesh))

    def write(params: Params, jobs: Iterable[Job]) -> Iterator[Written]:
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
            yield Written(written, token_slots, tokens)
            token_slots = tokens = 0

    return write
