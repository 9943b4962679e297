"""Where a stage takes its data, tokenizers and models from: config + workdir.

A stage takes its profiler and encoder from, in this order: `<role>.checkpoint` if set;
the last finished earlier stage of this workdir that trained it; the preset with random
weights (DESIGN 3). Config stops here and at the stages.
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

from blue import foreign, inference, models, programs, prompts, queries
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
from blue.inference import Model, Profile, TextEncoder
from blue.models import hf
from blue.models.decoder import DecoderConfig
from blue.sharding import batch_shards, put, replicated
from blue.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from blue.writer import told_slices

__all__ = ["Model", "Profile"]
logger = logging.getLogger("blue")

TRAINED_BY = {"profiler": ("profiler", "warm_start"), "encoder": ("encoder",)}
ITEMS_A_CALL = 2048  # of the encoder, for the item table: bounds the memory


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
    prepared = examples.prepare(
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
    if not len(prepared.validation.user):
        raise UserError(
            f"{log.name}: {prepared.stats['users_train']} users give an example, and "
            "at least 10 are needed to hold out some for validation and test; see "
            "data.min_interactions, data.validation_users"
        )
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
    return _query_format(config, encoder.num_tokens, encoder.max_tokens)


def own_query_format(config: ConfigDict, encoder: Model) -> queries.QueryFormat:
    """The same of our own encoder before it embeds anything: while it is trained."""
    return _query_format(config, _counter(encoder), config.encoder.max_tokens)


def _counter(encoder: Model) -> Callable[[str], int]:
    return lambda text: len(encoder.tokenizer.pooled(text))


def _query_format(
    config: ConfigDict, num_tokens: Callable[[str], int], max_tokens: int
) -> queries.QueryFormat:
    return queries.QueryFormat(
        templates=templates(config),
        instruction=config.prompts.instruction,
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
    config: ConfigDict, log: Log, workdir: str, role: str
) -> Tokenizer:
    """The role's tokenizer; where nothing brings one, one trained on the catalogue."""
    section = config[role]
    if section.tokenizer or section.checkpoint:
        return load_tokenizer(section.tokenizer or section.checkpoint)
    directory = Path(workdir) / "tokenizer"
    if not directory.exists():
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
        draft = directory.with_name(f".tokenizer.draft{jax.process_index()}")
        shutil.rmtree(draft, ignore_errors=True)
        trained.save(draft)
        try:
            draft.rename(directory)
        except OSError:  # another process was faster with the same
            shutil.rmtree(draft)
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
    tokenizer = load_role_tokenizer(config, log, workdir, role)
    dtype = config.dtype.params
    if section.checkpoint:
        cfg = hf.read_config(section.checkpoint)  # before anything large is read
        _check_vocabulary(cfg, tokenizer, section.checkpoint)
        cfg, params = hf.load(
            section.checkpoint, mesh, dtype=dtype, head=role == "profiler"
        )
        return Model(cfg, params, tokenizer, section.checkpoint)
    cfg = models.preset(section.preset)
    if not section.tokenizer:  # random weights: the head fits the trained tokenizer
        cfg = dataclasses.replace(cfg, vocab_size=-(-tokenizer.vocab_size // 8) * 8)
    _check_vocabulary(cfg, tokenizer, section.preset)
    shapes = programs.abstract_params(cfg, mesh, dtype)
    for stage in stages:
        checkpoints = stage_checkpoints(config, workdir, stage)
        if checkpoints.finished() and checkpoints.best():
            params, meta = checkpoints.restore_best(shapes)
            name = f"{section.preset} after {stage}"
            return Model(cfg, params, tokenizer, name, meta["step"])
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
        before = _earlier(config, "profiler", stage)
        return _load_role(config, log, workdir, mesh, "profiler", before)
    checkpoints = stage_checkpoints(config, workdir, "profiler")
    if not checkpoints.finished():
        return None
    base = load_profiler(config, log, workdir, mesh, "base")
    assert base is not None
    shapes = programs.abstract_params(base.cfg, mesh, config.dtype.params)
    params, meta = checkpoints.restore_best(shapes)
    name = f"{base.name}, GRPO step {meta['step']}"
    return base._replace(params=params, name=name, step=meta["step"])


def load_encoder(
    config: ConfigDict, log: Log, workdir: str, mesh: Mesh, *, stage: str = "evaluate"
) -> Model:
    """The encoder that `stage` uses."""
    before = _earlier(config, "encoder", stage)
    return _load_role(config, log, workdir, mesh, "encoder", before)


# --- models as functions of text


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
        buckets=(*(b for b in config.encoder.buckets if b < max_tokens), max_tokens),
        batch_size=config.encoder.batch_size,
        params_dtype=config.dtype.params,
        dtype=config.dtype.compute,
    )
    embed = functools.partial(run, encoder.params)
    weights, tokenizer = fingerprint(encoder.params), encoder.tokenizer.fingerprint
    return TextEncoder(
        embed=embed,
        start=lambda texts: lambda: embed(texts),  # the devices are its own
        num_tokens=_counter(encoder),
        max_tokens=max_tokens,
        width=encoder.cfg.width,
        name=encoder.name,
        fingerprint=f"{encoder.cfg} {weights} {tokenizer} "
        f"{config.dtype.compute} {max_tokens}",
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
    return inference.make_choice_scorer(
        reader.cfg,
        reader.tokenizer,
        templates(config),
        mesh,
        scoring=choice.scoring,
        shapes=inference.ChoiceShapes(
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
    if not path.exists():
        logger.info("embedding %d items", len(log.texts))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".tmp")
        shape = (len(log.texts), encoder.width)
        vectors = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
        parts = told_slices(len(vectors), ITEMS_A_CALL, name="items", unit="item")
        for part in parts:
            vectors[part] = encoder.embed(log.texts[part])
        vectors.flush()
        os.replace(partial, path)
    return np.load(path, mmap_mode="r")
