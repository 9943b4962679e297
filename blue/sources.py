"""Where a stage takes its data, tokenizers and models from: config + workdir.

A stage takes its profiler and encoder from, in this order: `<role>.checkpoint` if set;
the last finished earlier stage of this workdir that trained it; the preset with random
weights. Config stops here and at the stages.
"""

import dataclasses
import functools
import hashlib
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from blue import (
    adapters,
    distributed,
    foreign,
    hub,
    inference,
    judges,
    models,
    preemption,
    programs,
    prompts,
    queries,
    startup,
)
from blue.checkpoints import Checkpoints, fingerprint
from blue.data import (
    amazon_reviews_2023,
    examples,
    google_local,
    movielens,
    synthetic,
    table,
)
from blue.data.assemble import template_columns
from blue.data.log import Log, join
from blue.data.splits import read_splits
from blue.errors import UserError
from blue.hub import Source
from blue.inference import Model, Profile, TextEncoder
from blue.models import hf, sentence_layout
from blue.models.decoder import DecoderConfig, Lora
from blue.sharding import batch_shards, dividing_fsdp, put, replicated, to_host
from blue.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from blue.writer import told_slices

__all__ = ["Model", "Profile"]
logger = logging.getLogger("blue")

TRAINED_BY = {"profiler": ("profiler", "warm_start"), "encoder": ("encoder",)}
OWN_PROMPT = "@encoder"  # prompts.instruction that takes the checkpoint's own
ITEMS_A_CALL = 4096  # of the encoder, for the item table: bounds the memory


# --- data


_READERS = {  # of public data sets with fixed file names and columns
    "movielens": movielens.read,
    "amazon_reviews_2023": amazon_reviews_2023.read,
    "google_local": google_local.read,
}


def load_log(config: ConfigDict, workdir: str) -> Log:
    """The interaction log that `config.data` names; several folders become one log.

    The items' columns that category and pseudo_item_template name are kept.
    """
    data = config.data
    if data.name == "synthetic":
        return synthetic.make(config.seed, **data.synthetic)[0]
    if data.name == "table":
        read = functools.partial(
            table.read,
            events=data.events,
            items=data["items"],  # `.items` is a method of every config section
            separator=data.separator,
            columns=dict(data.columns),
        )
    elif data.name in _READERS:
        read = _READERS[data.name]
    else:
        known = ", ".join(("synthetic", "table", *_READERS))
        raise UserError(f"data.name is {data.name!r}; known are {known}")
    pseudo = ("data.pseudo_item_template", data.pseudo_item_template)
    columns = [data.category] * bool(data.category) + template_columns(*pseudo)
    folders = [data.path] if os.path.isdir(data.path) else data.path.split(",")
    logs = [
        read(
            folder.strip(),
            title_template=data.title_template,
            item_template=data.item_template,
            max_bad_fraction=data.max_bad_fraction,
            item_columns=tuple(dict.fromkeys(columns)),
        )
        for folder in folders
    ]
    return join(logs)


def load_examples(config: ConfigDict, log: Log, workdir: str) -> examples.Examples:
    """The prepared examples, made once in the workdir and reused."""
    data = config.data
    splits = None
    if data.splits:
        splits = read_splits(
            Path(data.path.partition(",")[0], data.splits),
            log.user_ids,
            separator=data.separator.replace("\\t", "\t"),
            user_column=data.columns.user_id,
        )
    prepare = functools.partial(
        examples.prepare,
        log,
        directory=os.path.join(workdir, "data"),
        seed=config.seed,
        min_interactions=data.min_interactions,
        max_interactions=data.max_interactions,
        window_policy=data.window_policy,
        window_s=data.window_s,
        rolling_targets=data.rolling_targets,
        embargo_items=data.embargo_items,
        min_history=data.min_history,
        max_train_targets=data.max_train_targets,
        targets_per_example=data.targets_per_example,
        ties=data.ties,
        validation_users=data.validation_users,
        test_users=data.test_users,
        eval_negatives=data.eval_negatives,
        splits=splits,
    )
    prepared = distributed.after_first(prepare)
    if not len(prepared.validation.user):
        raise UserError(
            f"{log.name}: {prepared.stats['users_train']} users give an example, and "
            "at least 10 are needed to hold out some for validation and test; see "
            "data.min_interactions, data.validation_users"
        )
    startup.agree({"data (its fingerprint)": prepared.fingerprint})
    preemption.leave_if_requested("the data is prepared")
    return prepared


# --- text


def templates(config: ConfigDict) -> prompts.Templates:
    """The wording of all prompts."""
    if config.prompts.style not in prompts.TEMPLATES:
        raise UserError(
            f"prompts.style is {config.prompts.style!r}; known are "
            f"{', '.join(sorted(prompts.TEMPLATES))}"
        )
    return prompts.TEMPLATES[config.prompts.style]


def query_format(config: ConfigDict, encoder: TextEncoder) -> queries.QueryFormat:
    """How users become queries of this encoder."""
    return _query_format(
        config,
        encoder.num_tokens,
        encoder.max_tokens,
        name=encoder.name,
        query_prompt=encoder.query_prompt,
    )


def own_query_format(config: ConfigDict, encoder: Model) -> queries.QueryFormat:
    """The same of our own encoder before it embeds anything: while it is trained."""
    return _query_format(
        config,
        _counter(encoder),
        config.encoder.max_tokens,
        name=encoder.name,
        query_prompt=_query_prompt(encoder),
    )


def _counter(encoder: Model) -> Callable[[str], int]:
    return lambda text: len(encoder.tokenizer.pooled(text))


def _query_prompt(encoder: Model) -> str | None:
    """The query prompt of the checkpoint it began with, if that says one."""
    directory = encoder.source.directory
    return sentence_layout.read(directory).query_prompt if directory else None


def _query_format(
    config: ConfigDict,
    num_tokens: Callable[[str], int],
    max_tokens: int,
    *,
    name: str,
    query_prompt: str | None,
) -> queries.QueryFormat:
    instruction = config.prompts.instruction
    prefix = prompts.query_prefix(instruction)
    if instruction == OWN_PROMPT:
        if query_prompt is None:
            raise UserError(
                f"prompts.instruction={OWN_PROMPT}: encoder {name} brings no query "
                f"prompt (prompts.query in {sentence_layout.PROMPTS}); write an "
                "instruction, or leave it empty"
            )
        prefix = query_prompt
    elif query_prompt is not None and query_prompt != prefix:
        logger.info(
            "encoder %s: its own query prompt is %r, ours %r (prompts.instruction=%s "
            "takes its own)",
            name,
            query_prompt,
            prefix,
            OWN_PROMPT,
        )
    return queries.QueryFormat(
        templates=templates(config),
        prefix=prefix,
        recent_items=config.prompts.recent_items,
        num_tokens=num_tokens,
        max_tokens=max_tokens,
    )


def prompt_format(config: ConfigDict, profiler: Model) -> queries.PromptFormat:
    """How users become profiler prompts."""
    return queries.PromptFormat(
        templates=templates(config),
        history_items=config.prompts.history_items,
        tokenizer=profiler.tokenizer,
        max_tokens=config.max_prompt_tokens,
    )


def load_role_tokenizer(
    config: ConfigDict, log: Log, workdir: str, role: str, checkpoint: str
) -> Tokenizer:
    """The role's tokenizer, of its own field or of the directory `checkpoint`.

    Where neither brings one, it is trained on the catalogue.
    """
    named, field = config[role].tokenizer, f"{role}.tokenizer"
    if named:
        return load_tokenizer(hub.fetch(named, field, weights=False).directory)
    if checkpoint:
        return load_tokenizer(checkpoint)
    directory = Path(workdir) / "tokenizer"

    def train() -> None:
        if directory.exists():
            return
        wording = templates(config)
        rng = np.random.default_rng(config.seed)
        spoken = [
            prompts.template_profile(
                wording, log.titles[i : i + 20], num_items=8, rng=rng
            )
            for i in range(0, len(log.titles), 20)
        ]
        corpus = [*log.titles, *log.texts, *spoken, *prompts.wordings(wording)]
        trained = train_tokenizer(corpus, vocab_size=config.tokenizer.vocab_size)
        # Whole or not at all: the vocabulary of every later model rests on it.
        draft = directory.with_name(".tokenizer.draft")
        shutil.rmtree(draft, ignore_errors=True)
        trained.save(draft)
        draft.rename(directory)

    distributed.of_first(train)
    return load_tokenizer(directory)


# --- models


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


def _load_role(
    config: ConfigDict,
    log: Log,
    workdir: str,
    mesh: Mesh,
    role: str,
    stages: Sequence[str],
) -> Model:
    """The role's model: its checkpoint, the first finished of `stages`, or random."""
    section = config[role]
    source, directory = find_checkpoint(config, role)
    tokenizer = load_role_tokenizer(config, log, workdir, role, directory)
    dtype = config.dtype.params
    if directory:
        cfg = hf.read_config(directory)  # before anything large is read
        _check_vocabulary(cfg, tokenizer, section.checkpoint)
        _tell_of_fsdp(cfg, mesh, dtype)
        cfg, params = hf.load(directory, mesh, dtype=dtype, head=role == "profiler")
        return Model(cfg, params, tokenizer, section.checkpoint, source=source)
    cfg = models.preset(section.preset)
    if not section.tokenizer:  # random weights: the head fits the trained tokenizer
        cfg = dataclasses.replace(cfg, vocab_size=-(-tokenizer.vocab_size // 8) * 8)
    _check_vocabulary(cfg, tokenizer, section.preset)
    _tell_of_fsdp(cfg, mesh, dtype)
    for stage in stages:
        checkpoints = stage_checkpoints(config, workdir, stage)
        if checkpoints.finished() and checkpoints.best():
            load_start = load_profiler_base if role == "profiler" else load_encoder
            params, meta, origin = adapters.load_best(
                checkpoints,
                cfg,
                mesh,
                dtype=dtype,
                start=functools.partial(
                    load_start, config, log, workdir, mesh, stage=stage
                ),
            )
            name = f"{section.preset} after {stage}"
            return Model(cfg, params, tokenizer, name, meta["step"], origin)
    for stage in TRAINED_BY[role]:
        left_out = stage not in config.stages
        if left_out and stage_checkpoints(config, workdir, stage).finished():
            logger.warning(
                "the %s starts from random weights: stages=%s leaves out %s, which has "
                "finished here; --config.stage=NAME runs one of all stages alone",
                role,
                ",".join(config.stages),
                stage,
            )
    seed = put(np.uint32(role_seed(config.seed, role)), replicated(mesh))
    params = programs.make_init(cfg, mesh, dtype)(seed)
    return Model(cfg, params, tokenizer, f"{section.preset}, random weights")


def find_checkpoint(config: ConfigDict, role: str) -> tuple[Source, str]:
    """Where `<role>.checkpoint` is, and the directory of its model; empty without."""
    checkpoint, field = config[role].checkpoint, f"{role}.checkpoint"
    if not checkpoint:
        return Source(), ""
    source = hub.fetch(checkpoint, field)
    startup.agree({f"{field} (its commit)": source.commit})
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


def _check_vocabulary(cfg: DecoderConfig, tokenizer: Tokenizer, source: str) -> None:
    if tokenizer.vocab_size > cfg.vocab_size:
        raise UserError(
            f"{source}: its embedding has {cfg.vocab_size} rows and the tokenizer "
            f"{tokenizer.vocab_size} ids; take the tokenizer the model was made with"
        )


def _earlier(config: ConfigDict, role: str, stage: str) -> list[str]:
    """Stages that train the role and run before `stage`, the latest first."""
    order = list(config.stages)
    limit = order.index(stage) if stage in order else len(order)
    trained = [s for s in order[:limit] if s in TRAINED_BY[role] and s != stage]
    return trained[::-1]


def load_profiler(
    config: ConfigDict,
    log: Log,
    workdir: str,
    mesh: Mesh,
    which: str,
    *,
    stage: str = "profiler",
) -> Model | None:
    """The profiler: "base", what stage `stage` starts from, or "trained" by GRPO.

    None where "trained" is asked for and no profiler stage has finished here.
    """
    if which == "base":
        return load_profiler_base(config, log, workdir, mesh, stage=stage)
    checkpoints = stage_checkpoints(config, workdir, "profiler")
    if not checkpoints.finished():
        return None
    base = load_profiler_base(config, log, workdir, mesh, stage="profiler")
    params, meta, origin = adapters.load_best(
        checkpoints, base.cfg, mesh, dtype=config.dtype.params, start=lambda: base
    )
    name = f"{base.name}, GRPO step {meta['step']}"
    return base._replace(params=params, name=name, step=meta["step"], origin=origin)


def load_profiler_base(
    config: ConfigDict, log: Log, workdir: str, mesh: Mesh, *, stage: str
) -> Model:
    """The profiler that `stage` starts from."""
    before = _earlier(config, "profiler", stage)
    model = _load_role(config, log, workdir, mesh, "profiler", before)
    if stage == "warm_start" and config.warm_start.tie_to_encoder:
        encoder = load_encoder(config, log, workdir, mesh, stage=stage)
        return tie_to_encoder(model, encoder)
    return model


def tie_to_encoder(profiler: Model, encoder: Model) -> Model:
    """The profiler with the encoder's token embeddings, at its own scale."""
    if encoder.cfg.width != profiler.cfg.width or (
        encoder.tokenizer.fingerprint != profiler.tokenizer.fingerprint
    ):
        raise UserError(
            "warm_start.tie_to_encoder needs profiler and encoder of one width and "
            f"tokenizer; widths are {profiler.cfg.width} and {encoder.cfg.width}"
        )
    scale = profiler.cfg.width**-0.5 if profiler.cfg.scale_embedding else 1.0
    own = profiler.params["embed"]
    embed = (to_host(encoder.params["embed"]) * scale).astype(own.dtype)
    embed = put(embed, own.sharding)
    return profiler._replace(params=profiler.params | {"embed": embed}, origin="")


def load_encoder(
    config: ConfigDict, log: Log, workdir: str, mesh: Mesh, *, stage: str = "evaluate"
) -> Model:
    """The encoder that `stage` uses."""
    before = _earlier(config, "encoder", stage)
    return _load_role(config, log, workdir, mesh, "encoder", before)


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
    """What config.profiler or config.encoder asks for; None: no adapters."""
    fields = section.lora
    if not fields.rank:
        return None
    return Lora(fields.rank, fields.alpha, tuple(dict.fromkeys(fields.targets)))


# --- models as functions of text


def encoder_buckets(config: ConfigDict) -> tuple[int, ...]:
    """Lengths of the encoder's rows, ascending; a text of `encoder.max_tokens` fits."""
    return tuple(sorted({*config.encoder.buckets, config.encoder.max_tokens}))


def load_text_encoder(
    config: ConfigDict,
    section: ConfigDict,
    log: Log,
    workdir: str,
    mesh: Mesh,
    *,
    stage: str = "evaluate",
) -> TextEncoder:
    """The encoder that config.encoder or config.evaluate.transfer names, for `stage`.

    Sizes come from config.encoder; an own transfer encoder is its checkpoint.
    """
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
    model = load_encoder(config, log, workdir, mesh, stage=stage)
    return own_encoder(config, model, mesh)


def own_encoder(config: ConfigDict, encoder: Model, mesh: Mesh) -> TextEncoder:
    """Our own encoder, compiled for the devices of `mesh`."""
    check_divides(config.encoder.batch_size, "encoder.batch_size", mesh)
    max_tokens = config.encoder.max_tokens
    run = inference.make_embedder(
        encoder.cfg,
        encoder.tokenizer,
        mesh,
        lengths=encoder_buckets(config),
        max_tokens=max_tokens,
        batch_size=config.encoder.batch_size,
        params_dtype=config.dtype.params,
        dtype=config.dtype.compute,
    )
    weights, tokenizer = fingerprint(encoder.params), encoder.tokenizer.fingerprint
    return TextEncoder(
        embed=functools.partial(run.embed, encoder.params),
        start=functools.partial(run.start, encoder.params),
        num_tokens=_counter(encoder),
        max_tokens=max_tokens,
        width=encoder.cfg.width,
        name=encoder.name,
        fingerprint=f"{encoder.cfg} {weights} {tokenizer} "
        f"{config.dtype.compute} {max_tokens}",
        query_prompt=_query_prompt(encoder),
        weights=weights,
        spent=run.spent,
    )


def make_generate_with(
    config: ConfigDict,
    profiler: Model,
    mesh: Mesh,
    *,
    temperature: float,
    stage: str = "evaluate",
) -> Callable[..., list[Profile]]:
    """(params, prompts, example ids) -> one profile each.

    Keyed by (seed, stage, example).
    """
    check_divides(config.evaluate.batch_size, "evaluate.batch_size", mesh)
    return inference.make_generator(
        profiler.cfg,
        profiler.tokenizer,
        mesh,
        batch_size=config.evaluate.batch_size,
        buckets=config.prompt_buckets,
        max_tokens=config.max_completion_tokens,
        temperature=temperature,
        seed=config.seed,
        stage_id=stage_id(stage),
        params_dtype=config.dtype.params,
        dtype=config.dtype.compute,
    )


def make_generate(
    config: ConfigDict, profiler: Model, mesh: Mesh, *, temperature: float
) -> Callable[..., list[Profile]]:
    """(prompts, example ids) -> one profile each, of this profiler."""
    generate = make_generate_with(config, profiler, mesh, temperature=temperature)
    return functools.partial(generate, profiler.params)


def make_choice(
    config: ConfigDict, reader: Model, mesh: Mesh, *, batch_size: int
) -> Callable[..., np.ndarray]:
    """(reader params, profiles, options of each) -> scores [n, options]."""
    choice = config.rewards.choice
    return judges.make_choice_scorer(
        reader.cfg,
        reader.tokenizer,
        templates(config),
        mesh,
        scoring=choice.scoring,
        shapes=judges.ChoiceShapes(
            batch_size=batch_size,
            num_options=choice.num_options,
            prompt_tokens=choice.max_prompt_tokens,
            option_tokens=choice.max_option_tokens,
        ),
        params_dtype=config.dtype.params,
        dtype=config.dtype.compute,
    )


def make_choice_scorer(
    config: ConfigDict, reader: Model, mesh: Mesh
) -> Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]:
    """(profiles, options of each) -> scores [n, options], of this reader."""
    score = make_choice(config, reader, mesh, batch_size=config.evaluate.batch_size)
    return functools.partial(score, reader.params)


def _tell_of_fsdp(cfg: DecoderConfig, mesh: Mesh, dtype: str) -> None:
    dividing = dividing_fsdp(programs.abstract_params(cfg, mesh, dtype), mesh)
    if dividing < mesh.shape["fsdp"]:
        logger.warning("%s", about_fsdp(mesh, dividing))


def about_fsdp(mesh: Mesh, dividing: int) -> str:
    """What to do where only a part of `fsdp` divides a model's matrices."""
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


def item_table(
    encoder: TextEncoder, log: Log, workdir: str
) -> Float[np.ndarray, "items E"]:
    """Unit vectors of the whole catalogue, computed once and memory-mapped.

    Kept under a fingerprint of the encoder and the item texts.
    """
    digest = hashlib.sha256(encoder.fingerprint.encode())
    for text in log.texts:
        digest.update(text.encode() + b"\0")
    path = Path(workdir) / "items" / f"{digest.hexdigest()[:16]}.npy"
    if not distributed.of_first(path.exists):
        _embed_items(encoder, log, path)
    return np.load(path, mmap_mode="r")


def _embed_items(encoder: TextEncoder, log: Log, path: Path) -> None:
    """Writes the table to `path`, whole or not at all; all processes embed for it."""
    logger.info("embedding %d items", len(log.texts))
    writes, partial = jax.process_index() == 0, path.with_suffix(".tmp")
    shape = (len(log.texts), encoder.width)
    vectors = None
    if writes:
        path.parent.mkdir(parents=True, exist_ok=True)
        vectors = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
    begin = lambda first: encoder.start(log.texts[first : first + ITEMS_A_CALL])
    ready = begin(0)
    for part in told_slices(shape[0], ITEMS_A_CALL, name="items", unit="item"):
        following = begin(part.stop)  # on their way before these are waited for
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
        os.replace(partial, path)

    distributed.of_first(finish)
