"""config + workdir -> the text encoder and the item table."""

import contextlib
import dataclasses
import functools
import hashlib
import logging
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from blue.data.log import Log
from blue.errors import UserError
from blue.hub.model import Model
from blue.inference import foreign
from blue.inference.embed import TextEncoder, make_embed_programs, make_embedder
from blue.models.decoder import DecoderConfig
from blue.models.encoder import architecture
from blue.runtime import distributed, files
from blue.runtime.programs import Program
from blue.runtime.progress import slices_with_progress
from blue.sources.open_run import Run
from blue.sources.role import check_divides, load_role, precision_of
from blue.sources.text import own_query_prompt, token_counter
from blue.workdir.checkpoints import fingerprint

logger = logging.getLogger("blue")

ITEMS_A_CALL = 4096  # texts embedded at a time for the item table: bounds the memory


def encoder_buckets(config: ConfigDict) -> tuple[int, ...]:
    """Lengths of the encoder's rows, ascending; a text of `encoder.max_tokens` fits."""
    return tuple(sorted({*config.encoder.buckets, config.encoder.max_tokens}))


def load_encoder(run: Run, *, stage: str = "evaluate") -> Model:
    """The encoder that `stage` uses."""
    return load_role(run, "encoder", stage=stage, load_start=load_encoder)


def load_text_encoder(
    run: Run, section: ConfigDict, *, stage: str = "evaluate"
) -> TextEncoder:
    """The encoder that config.encoder or config.evaluate.transfer names, for `stage`.

    Sizes come from config.encoder. A transfer encoder of ours comes from its
    checkpoint.
    """
    config = run.config
    if section.kind == "sentence_transformers":
        return foreign.sentence_transformers(
            section.checkpoint,
            max_tokens=config.encoder.max_tokens,
            batch_size=config.encoder.batch_size,
        )
    if section.kind == "function":
        return foreign.function(
            section.checkpoint,
            max_tokens=config.encoder.max_tokens,
            batch_size=config.encoder.batch_size,
        )
    if section is not config.encoder:
        config = config.copy_and_resolve_references()
        config.encoder.checkpoint, config.encoder.tokenizer = section.checkpoint, ""
        run = dataclasses.replace(run, config=config)
    return own_encoder(config, load_encoder(run, stage=stage), run.mesh)


def own_encoder_programs(
    config: ConfigDict, cfg: DecoderConfig, mesh: Mesh
) -> dict[int, Program]:
    """Our own encoder's programs, by the length of their rows."""
    return make_embed_programs(
        cfg,
        mesh,
        precision_of(config),
        lengths=encoder_buckets(config),
        batch_size=config.encoder.batch_size,
    )


def own_encoder(config: ConfigDict, encoder: Model, mesh: Mesh) -> TextEncoder:
    """Our own encoder, compiled for the devices of `mesh`."""
    check_divides(config.encoder.batch_size, "encoder.batch_size", mesh)
    max_tokens = config.encoder.max_tokens
    run = make_embedder(
        encoder.cfg,
        encoder.tokenizer,
        mesh,
        own_encoder_programs(config, encoder.cfg, mesh),
        max_tokens=max_tokens,
        batch_size=config.encoder.batch_size,
    )
    weights, tokenizer = fingerprint(encoder.params), encoder.tokenizer.fingerprint
    return TextEncoder(
        embed=functools.partial(run.embed, encoder.params),
        start=functools.partial(run.start, encoder.params),
        num_tokens=token_counter(encoder),
        max_tokens=max_tokens,
        width=encoder.cfg.width,
        name=encoder.name,
        fingerprint=f"{architecture(encoder.cfg)} {weights} {tokenizer} "
        f"{config.dtype.compute} {max_tokens}",
        query_prompt=own_query_prompt(encoder),
        weights=weights,
        slot_counts=run.slot_counts,
    )


def load_item_table(
    encoder: TextEncoder, log: Log, workdir: str
) -> Float[np.ndarray, "items E"]:
    """Unit vectors of the whole catalogue, computed once and memory-mapped.

    Kept under a fingerprint of the encoder and the item texts.
    """
    digest = hashlib.sha256(encoder.fingerprint.encode())
    for text in log.texts:
        digest.update(text.encode() + b"\0")
    path = Path(workdir) / "items" / f"{digest.hexdigest()[:16]}.npy"
    if not distributed.on_process_0(path.exists):
        _embed_items(encoder, log, path)
    return np.load(path, mmap_mode="r")


def _embed_items(encoder: TextEncoder, log: Log, path: Path) -> None:
    """Writes the table to `path`, whole or not at all. All processes take part."""
    logger.info("embedding %d items", len(log.texts))
    count = len(log.texts)
    vectors = None
    with contextlib.ExitStack() as file:
        if jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = file.enter_context(files.whole_file(path))
            vectors = np.lib.format.open_memmap(
                draft, "w+", np.float32, (count, encoder.width)
            )
        begin = lambda first: encoder.start(log.texts[first : first + ITEMS_A_CALL])
        ready = begin(0)
        parts = slices_with_progress(count, ITEMS_A_CALL, name="items", unit="item")
        for part in parts:
            following = begin(part.stop)  # starts the next before waiting for these
            found, ready = ready(), following
            if not np.isfinite(found).all():
                raise UserError(
                    f"encoder {encoder.name}: the vectors of items are not finite; its "
                    "weights are broken"
                )
            if vectors is not None:
                vectors[part] = found

        def finish() -> None:
            assert vectors is not None
            vectors.flush()
            file.close()  # the table is complete before other processes open it

        distributed.on_process_0(finish)
