"""Prompts in, profiles out: the compiled programs behind plain host functions.

Each `make_*` compiles its programs once for fixed shapes. The function it returns pads,
sorts by length, calls the programs and restores the order.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from blue.inference import sampling
from blue.inference.pad import bucket_for, pad_left
from blue.models import lora
from blue.models.decoder import DecoderConfig, Params
from blue.runtime.progress import slices_with_progress
from blue.runtime.shapes import Precision, Sampling, Shapes
from blue.runtime.sharding import by_batch, put, replicated, to_host
from blue.text.tokenizer import Tokenizer


class Profile(NamedTuple):
    """A generated profile."""

    text: str
    num_tokens: int
    finished: bool  # an end token was sampled


def decode_profile(
    tokenizer: Tokenizer, tokens: np.ndarray, mask: np.ndarray
) -> Profile:
    """Text of one completion [C]; ids that the tokenizer lacks are left out."""
    ids = tokens[mask].tolist()
    finished = bool(ids) and ids[-1] in tokenizer.end_ids
    known = [i for i in ids if i < tokenizer.vocab_size]
    return Profile(tokenizer.decode(known).strip(), len(ids), finished)


def plain_sampling(tokenizer: Tokenizer, temperature: float) -> Sampling:
    """Sampling from the whole vocabulary until one of the tokenizer's end tokens."""
    return Sampling(temperature, 0, 1.0, tuple(tokenizer.end_ids), tokenizer.pad_id)


def make_generator(
    cfg: DecoderConfig,
    tokenizer: Tokenizer,
    mesh: Mesh,
    shapes: Sequence[Shapes],
    precision: Precision,
    *,
    temperature: float,
    key: tuple[int, int],
) -> Callable[[Params, Sequence[Sequence[int]], Sequence[int]], list[Profile]]:
    """(params, prompts, example ids) -> one profile each, in order.

    shapes: of the batches, with ascending prompt lengths, otherwise equal, and one
    completion a prompt. key: seed and number of the stage. Sampling is keyed by both
    and the example's id, so it does not depend on how prompts are batched.
    """
    relayout = sampling.make_relayout(cfg, mesh, precision)
    cfg = lora.without(cfg)  # the copy in the decode layout has its adapters merged
    draws = plain_sampling(tokenizer, temperature)
    run = {
        s.prompt: sampling.make_sample(cfg, mesh, s, draws, precision.compute)
        for s in shapes
    }
    buckets, batch_size = tuple(run), shapes[0].batch
    seeds = put(np.array([*key, 0], np.uint32), replicated(mesh))

    def generate(
        params: Params, prompt_ids: Sequence[Sequence[int]], ids: Sequence[int]
    ) -> list[Profile]:
        decode_params = relayout(params)
        out: list[Any] = [None] * len(prompt_ids)
        order = sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]))
        for members in slices_with_progress(
            len(order), batch_size, name="profiles", unit="profile"
        ):
            part = order[members]
            padded = part + [part[0]] * (batch_size - len(part))
            rows = [prompt_ids[i] for i in padded]
            length = bucket_for(buckets, max(len(r) for r in rows))
            tokens, mask = pad_left(rows, length, tokenizer.pad_id)
            keys = np.array([ids[i] for i in padded], np.int32)
            tokens, mask, keys = put((tokens, mask, keys), by_batch(mesh))
            rollout = to_host(run[length](decode_params, tokens, mask, keys, seeds))
            for row, i in enumerate(part):
                out[i] = decode_profile(
                    tokenizer, rollout.tokens[row, 0], rollout.mask[row, 0]
                )
        return out

    return generate
