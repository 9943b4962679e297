"""A trained model as a Hugging Face directory: export/profiler/ or export/encoder/.

Adapters are merged into it, and also written separately: export/<role>_adapter/.

Another run loads it, with the tokenizer, by `--config.profiler.checkpoint=DIR` (or
`encoder.checkpoint`). So do transformers, vLLM and, for an encoder,
sentence-transformers. A model card, licence files and the run's config are added.
"""

import json
import logging
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

from blue.hub import card, peft, sentence_layout
from blue.hub.directory import KEPT, read_source, save_decoder
from blue.hub.model import Model
from blue.hub.source import Source
from blue.models import families, lora
from blue.models.decoder import Params
from blue.models.params import make_merge, shapes_of
from blue.runtime import files
from blue.runtime.sharding import to_host
from blue.workdir import record
from blue.workdir.checkpoints import Checkpoints, fingerprint

logger = logging.getLogger("blue")
TASKS = {"profiler": "CAUSAL_LM", "encoder": "FEATURE_EXTRACTION"}  # PEFT's words


class RunFacts(NamedTuple):
    """Facts about the run that made the weights."""

    stage: str
    config: dict[str, Any]  # of the run, without secrets
    data: str  # name of the log
    fingerprint: str  # of the log and the settings of its examples
    validated: bool  # the best parameters were chosen by validation NDCG@10
    sampling_temperature: float  # recommended for profiles
    max_completion_tokens: int  # of a profile
    max_tokens: int  # of a text, the encoder's
    query_prompt: str  # before the encoder's queries
    lender: Source = Source()  # of weights copied into a model that started random


def write(
    checkpoints: Checkpoints,
    model: Model,
    workdir: str | os.PathLike,
    role: str,
    run: RunFacts,
) -> None:
    """Writes the stage's best parameters; replaces an earlier export of the role.

    Args:
        model: the model the stage started from, for shapes, configuration and
            tokenizer.
        workdir: local or gs://.
        role: "profiler" or "encoder".

    On a disk the directory appears complete or not at all. In a bucket files are
    renamed one by one, so an incomplete export may have a config.json.
    """
    frozen, trained = lora.split(model.params)
    best, meta = checkpoints.restore_best(shapes_of(trained))
    params = lora.join(frozen, best)
    if model.cfg.lora:
        merge = make_merge(model.cfg, shapes_of(params))
        params = merge(params)
    directory = epath.Path(workdir) / "export" / role
    weights = fingerprint(params)
    writes = jax.process_index() == 0
    with files.whole_directory(directory, writes=writes) as draft:
        save_decoder(draft, lora.without(model.cfg), params, source=_kept(model, role))
        if writes:
            _save_tokenizer(draft, model, role, run)
            _describe(draft, model, role, run, meta, weights)
    logger.info("%s of step %d exported to %s", role, meta["step"], directory)
    _write_adapters(directory.parent / f"{role}_adapter", model, role, best)


def _save_tokenizer(draft: epath.Path, model: Model, role: str, run: RunFacts) -> None:
    """Writes the tokenizer's files and the role's other files."""
    if role == "profiler":
        model.tokenizer.save(draft, sampling=_sampling(run.sampling_temperature))
        return
    model.tokenizer.save(draft, pooled=True)
    sentence_layout.write(
        draft,
        width=model.cfg.width,
        max_tokens=run.max_tokens,
        query_prompt=run.query_prompt,
    )


def _write_adapters(
    directory: epath.Path, model: Model, role: str, best: Params
) -> None:
    """The stage's best adapters, unmerged, for PEFT.

    A stage without adapters removes those of an earlier stage, whose model is no longer
    exported.
    """
    writes = jax.process_index() == 0
    if model.cfg.lora is None:
        if writes and directory.exists():
            directory.rmtree()
        return
    best = to_host(best)
    if not writes:
        return
    source = model.source
    # for PEFT, whose hub ids have no revision
    base = source.checkpoint.partition("@")[0] if source.commit else source.checkpoint
    with files.whole_directory(directory) as draft:
        peft.save(
            draft,
            model.cfg,
            best,
            task=TASKS[role],
            base=base,
            tower=_tower(_transformer(model, role)),
        )


def _transformer(model: Model, role: str) -> str:
    """The directory of the config.json that the model started with; empty: none."""
    directory = model.source.directory
    if directory and role == "encoder":
        return sentence_layout.read(directory).transformer
    return directory


def _tower(directory: str) -> str:
    """The name of our decoder inside this directory's model in transformers."""
    if not directory:
        return ""
    model_type = read_source(directory)["model_type"]
    return families.of_model_type(model_type).MODEL_TYPES[model_type]


def _kept(model: Model, role: str) -> dict[str, Any]:
    """Fields of config.json beside the architecture: the source's, else ours.

    The end tokens of a profile are those of generation_config.json.
    """
    tokenizer = model.tokenizer
    tokens = {"eos_token_id": list(tokenizer.end_ids), "pad_token_id": tokenizer.pad_id}
    if tokenizer.bos_id is not None:
        tokens["bos_token_id"] = tokenizer.bos_id
    directory = _transformer(model, role)
    if not directory:
        return tokens
    source = read_source(directory)
    source = {**(source.get("text_config") or {}), **source}
    return tokens | {k: source[k] for k in KEPT if source.get(k) is not None}


def _sampling(temperature: float) -> dict[str, Any]:
    """Fields of generation_config.json: how to sample profiles.

    The source's own (Gemma 3: the 64 likeliest tokens, of 95%) are not kept: training
    and evaluation sample the whole distribution. Without top_k, transformers uses 50.
    """
    if not temperature:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


def _describe(
    directory: epath.Path,
    model: Model,
    role: str,
    run: RunFacts,
    meta: Mapping[str, Any],
    weights: int,
) -> None:
    """Writes the licence files, training_config.json and the card."""
    source = model.source if model.source.directory else run.lender
    family = families.of(model.cfg)
    before = {path.name for path in directory.iterdir()}
    card.copy_notices(source, directory, notice=family.NOTICE)
    facts = {
        "role": role,
        "stage": run.stage,
        "step": meta["step"],
        "validation": meta["value"] if run.validated else None,
        "weights": weights,
        "model": model.name,
        "checkpoint": source.checkpoint,
        "commit": source.commit,
        "base_model": card.base_model(source),
        "random_weights": card.began_random(source),
        "licence": card.licence(source, unstated=family.LICENCE),
        "notices": sorted({p.name for p in directory.iterdir()} - before),
        "data": run.data,
        "fingerprint": run.fingerprint,
        "max_completion_tokens": run.max_completion_tokens,
        **record.code(),
        "config": run.config,
    }
    text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    (directory / card.FACTS).write_text(text)
    (directory / card.CARD).write_text(card.render(facts, ""))


def add_evaluation(workdir: str | os.PathLike, section: str, weights: set[int]) -> None:
    """Adds the evaluation to the cards of the exports that were evaluated.

    Args:
        section: the card's section, in Markdown.
        weights: `fingerprint` of the parameters of each model that was evaluated.
    """
    for role in ("profiler", "encoder"):
        directory = epath.Path(workdir) / "export" / role
        if not (directory / card.FACTS).exists():
            continue
        facts = json.loads((directory / card.FACTS).read_text())
        if facts["weights"] in weights:
            files.write_text(directory / card.CARD, card.render(facts, section))
