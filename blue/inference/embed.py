"""Texts in, vectors out."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from blue.inference import packing, scoring
from blue.models import flops
from blue.models.decoder import DecoderConfig, Params
from blue.runtime.programs import Program
from blue.runtime.shapes import Precision
from blue.runtime.sharding import by_batch, put, to_host
from blue.text.tokenizer import Tokenizer

Embed = Callable[[Sequence[str]], np.ndarray]


class TextEncoder(NamedTuple):
    """A function from texts to vectors: for rewards, evaluation and the item table."""

    embed: Embed  # texts -> unit vectors [n E] float32, in order
    # texts -> a function that waits for their vectors, NaN for those that have none;
    # the encoder has started when it returns
    start: Callable[[Sequence[str]], Callable[[], np.ndarray]]
    num_tokens: Callable[[str], int]  # of a text as the encoder reads it
    max_tokens: int  # longer texts are cut at their end
    width: int  # E
    name: str
    fingerprint: str  # equal where vectors are equal: names them on disk
    query_prompt: str | None = None  # before queries; None: not stated
    weights: int | None = None  # `fingerprint` of our own parameters
    slot_counts: Mapping[str, int] | None = None  # as in `Embedder`


class Embedder(NamedTuple):
    """Texts -> vectors with our own encoder, whose parameters come first."""

    # -> unit vectors [n E] float32, in the order of the texts
    embed: Callable[[Params, Sequence[str]], np.ndarray]
    # -> a function that waits for them; the devices have started when it returns
    start: Callable[[Params, Sequence[str]], Callable[[], np.ndarray]]
    slot_counts: dict[str, int]  # so far: "slots" that were computed, "tokens" in them


def make_embed_programs(
    cfg: DecoderConfig,
    mesh: Mesh,
    precision: Precision,
    *,
    lengths: Sequence[int],
    batch_size: int,
) -> dict[int, Program]:
    """A program for each of `lengths`, the slots of a row. A batch has `batch_size`
    rows and as many texts as they hold (packing.py)."""
    sizes = {length: packing.row_shapes(batch_size, length) for length in lengths}
    return {n: scoring.make_embed(cfg, mesh, sizes[n], precision) for n in sizes}


def make_embedder(
    cfg: DecoderConfig,
    tokenizer: Tokenizer,
    mesh: Mesh,
    run: Mapping[int, Program],
    *,
    max_tokens: int,
    batch_size: int,
) -> Embedder:
    """Texts -> vectors, by the programs of `make_embed_programs`, which is `run`.

    Texts of more than `max_tokens` are cut at their end; the pooling token stays. Equal
    texts are embedded once, so their vectors are bitwise equal.
    """
    lengths = tuple(run)
    slot_counts = {"slots": 0, "tokens": 0}

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
            slot_counts["slots"] += rows.tokens.size
            slot_counts["tokens"] += rows.used

        def vectors() -> np.ndarray:
            out = np.zeros((len(place), cfg.width), np.float32)
            for text, found in waiting:
                known = text >= 0
                out[text[known]] = to_host(found)[known]
            return out[of_text]

        return vectors

    embed = lambda params, texts: start(params, texts)()
    return Embedder(embed, start, slot_counts)
