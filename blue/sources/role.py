"""The model of a role, profiler or encoder: where it comes from, how it is trained.

A stage takes the first that exists: `<role>.checkpoint`; the last finished earlier
stage of this workdir that trained the role; the preset with random weights.
"""

import dataclasses
import functools
import logging
import os
import zlib
from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blue.errors import UserError
from blue.hub import sentence_layout
from blue.hub.directory import load_decoder, read_config
from blue.hub.model import Model
from blue.hub.source import Source, fetch
from blue.models import families
from blue.models.decoder import DecoderConfig, Lora
from blue.models.params import abstract_params, make_init
from blue.runtime.shapes import Precision
from blue.runtime.sharding import batch_shards, dividing_fsdp, put, replicated
from blue.sources import adapters
from blue.sources.open_run import Run
from blue.sources.text import load_role_tokenizer
from blue.text.tokenizer import Tokenizer
from blue.workdir import startup
from blue.workdir.checkpoints import Checkpoints
from blue.workdir.stages import trained_by

logger = logging.getLogger("blue")


def precision_of(config: ConfigDict) -> Precision:
    """The number types of all programs of a run."""
    return Precision(config.dtype.params, config.dtype.compute, config.remat)


def role_seed(seed: int, role: str) -> int:
    """A seed of its own for each role's random weights."""
    return zlib.crc32(f"{seed}/{role}".encode())


def stage_id(stage: str) -> int:
    """The number that keys a stage's sampling."""
    return zlib.crc32(stage.encode())


def stage_checkpoints(config: ConfigDict, workdir: str, stage: str) -> Checkpoints:
    """The checkpoints of one stage of this workdir."""
    return Checkpoints(
        os.path.join(workdir, "checkpoints", stage),
        keep=config.checkpoint_keep,
        milestone_every=config.checkpoint_milestone_every,
    )


def load_role(
    run: Run, role: str, *, stage: str, load_start: Callable[..., Model]
) -> Model:
    """The model of `role` that `stage` starts from.

    Its checkpoint; else what the last finished stage before `stage` made of it; else
    the preset with random weights. load_start(run, stage=...) loads the model that an
    earlier stage started from; adapters are merged into it.
    """
    config, mesh = run.config, run.mesh
    section = config[role]
    source, directory = find_checkpoint(config, role)
    tokenizer = load_role_tokenizer(run, role, directory)
    dtype = config.dtype.params
    if directory:
        cfg = read_config(directory)  # before anything large is read
        check_vocabulary(cfg, tokenizer, section.checkpoint)
        _tell_of_fsdp(cfg, mesh, dtype)
        cfg, params = load_decoder(
            directory, mesh, dtype=dtype, head=role == "profiler"
        )
        return Model(cfg, params, tokenizer, section.checkpoint, source=source)
    cfg = families.preset(section.preset)
    if not section.tokenizer:  # random weights: the head fits the trained tokenizer
        cfg = dataclasses.replace(cfg, vocab_size=-(-tokenizer.vocab_size // 8) * 8)
    check_vocabulary(cfg, tokenizer, section.preset)
    _tell_of_fsdp(cfg, mesh, dtype)
    for earlier in _earlier(config, role, stage):
        checkpoints = stage_checkpoints(config, run.workdir, earlier)
        if checkpoints.finished() and checkpoints.best():
            params, meta, origin = adapters.load_best(
                checkpoints,
                cfg,
                mesh,
                dtype=dtype,
                start=functools.partial(load_start, run, stage=earlier),
            )
            name = f"{section.preset} after {earlier}"
            return Model(cfg, params, tokenizer, name, meta["step"], origin)
    _tell_of_left_out(config, role, run.workdir)
    seed = put(np.uint32(role_seed(config.seed, role)), replicated(mesh))
    params = make_init(cfg, mesh, dtype)(seed)
    return Model(cfg, params, tokenizer, f"{section.preset}, random weights")


def _tell_of_left_out(config: ConfigDict, role: str, workdir: str) -> None:
    """Warns where a stage that trained the role has finished and is left out."""
    for stage in trained_by(role):
        left_out = stage not in config.stages
        if left_out and stage_checkpoints(config, workdir, stage).finished():
            logger.warning(
                "the %s starts from random weights: stages=%s leaves out %s, which has "
                "finished here; --config.stage=NAME runs one of all stages alone",
                role,
                ",".join(config.stages),
                stage,
            )


def find_checkpoint(config: ConfigDict, role: str) -> tuple[Source, str]:
    """The source `<role>.checkpoint` and the directory of its model; empty if not
    set."""
    checkpoint, field = config[role].checkpoint, f"{role}.checkpoint"
    if not checkpoint:
        return Source(), ""
    source = fetch(checkpoint, field)
    startup.check_hosts_agree({f"{field} (its commit)": source.commit})
    if role == "profiler":
        return source, source.directory
    layout = sentence_layout.read(source.directory)
    if layout.max_tokens is not None and layout.max_tokens < config.encoder.max_tokens:
        logger.warning(
            "%s=%s: made for texts of at most %d tokens (max_seq_length), and "
            "encoder.max_tokens=%d",
            field,
            checkpoint,
            layout.max_tokens,
            config.encoder.max_tokens,
        )
    if layout.document_prompt:
        logger.warning(
            "%s=%s: its document prompt %r is not used: nothing is put before items",
            field,
            checkpoint,
            layout.document_prompt,
        )
    return source, layout.transformer


def check_vocabulary(cfg: DecoderConfig, tokenizer: Tokenizer, source: str) -> None:
    """Raises `UserError` where the tokenizer has ids that the embedding lacks."""
    if tokenizer.vocab_size > cfg.vocab_size:
        raise UserError(
            f"{source}: its embedding has {cfg.vocab_size} rows and the tokenizer "
            f"{tokenizer.vocab_size} ids; take the tokenizer the model was made with"
        )


def _earlier(config: ConfigDict, role: str, stage: str) -> list[str]:
    """Stages that train the role and run before `stage`, the latest first."""
    order = list(config.stages)
    limit = order.index(stage) if stage in order else len(order)
    return [s for s in order[:limit] if s in trained_by(role) and s != stage][::-1]


def add_adapters(
    config: ConfigDict, role: str, model: Model, mesh: Mesh, *, stage: str
) -> Model:
    """The model as `stage` trains it: with adapters where `<role>.lora` asks for them,
    else itself."""
    fresh = fresh_adapters(config[role])
    if fresh is None:
        return model
    return adapters.add(
        model,
        fresh,
        mesh,
        seed=role_seed(config.seed, f"{stage} adapters"),
        dtype=config.dtype.params,
    )


def fresh_adapters(section: ConfigDict) -> Lora | None:
    """The adapters of config.profiler or config.encoder; None: no adapters."""
    fields = section.lora
    if not fields.rank:
        return None
    return Lora(fields.rank, fields.alpha, tuple(dict.fromkeys(fields.targets)))


def _tell_of_fsdp(cfg: DecoderConfig, mesh: Mesh, dtype: str) -> None:
    dividing = dividing_fsdp(abstract_params(cfg, mesh, dtype), mesh)
    if dividing < mesh.shape["fsdp"]:
        logger.warning("%s", about_fsdp(mesh, dividing))


def about_fsdp(mesh: Mesh, dividing: int) -> str:
    """Advice where only a part of `fsdp` divides a model's matrices."""
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    return (
        f"mesh.data={data * fsdp // dividing} mesh.fsdp={dividing} splits every matrix;"
        f" mesh.fsdp={fsdp} does not divide some, which lie whole on each device"
    )


def check_divides(batch_size: int, field: str, mesh: Mesh) -> None:
    """A global batch must split evenly over the mesh."""
    shards = batch_shards(mesh)
    if batch_size < 1 or batch_size % shards:
        raise UserError(
            f"{field} = {batch_size} must be a positive multiple of {shards}, "
            "the devices along mesh axes data x fsdp"
        )
