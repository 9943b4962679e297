"""A trained model as a Hugging Face directory: export/profiler/ or export/encoder/.

Another run loads it, tokenizer included, with `--config.profiler.checkpoint=DIR` (or
`encoder.checkpoint`), and so do transformers, vLLM and, for an encoder,
sentence-transformers. With it go a model card, licence files and what was run.
"""

import json
import logging
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

from blue import card, record
from blue.checkpoints import Checkpoints, fingerprint
from blue.inference import Model
from blue.models import hf, sentence_layout

logger = logging.getLogger("blue")


class Run(NamedTuple):
    """What a stage knows of itself and its weights do not tell."""

    stage: str
    config: dict[str, Any]  # of the run, without secrets
    data: str  # name of the log
    fingerprint: str  # of the log and the settings of its examples
    validated: bool  # the best parameters were chosen by NDCG@10 on validation users
    sampling_temperature: float  # of profiles when they are used
    max_completion_tokens: int  # of a profile
    max_tokens: int  # of a text, the encoder's
    query_prompt: str  # before the encoder's queries


def write(
    checkpoints: Checkpoints,
    model: Model,
    workdir: str | os.PathLike,
    role: str,
    run: Run,
) -> None:
    """The stage's best parameters, in the place of an earlier export of the role.

    Args:
        model: what the stage started from: its shapes, configuration and tokenizer.
        workdir: local or gs://.
        role: "profiler" or "encoder".

    On a disk the directory appears complete or not at all; in a bucket, where a
    directory is renamed file by file, config.json of a half export may be there.
    """
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        model.params,
    )
    params, meta = checkpoints.restore_best(shapes)
    directory = epath.Path(workdir) / "export" / role
    draft, old = (directory.parent / f".{role}.{end}" for end in ("draft", "old"))
    writes = jax.process_index() == 0
    for left in (draft, old) if writes else ():  # by a run that was killed
        if left.exists():
            left.rmtree()
    hf.save(draft, model.cfg, params, source=_kept(model, role))
    weights = fingerprint(params)
    if not writes:
        return
    if role == "encoder":
        model.tokenizer.save(draft, pooled=True)
        sentence_layout.write(
            draft,
            width=model.cfg.width,
            max_tokens=run.max_tokens,
            query_prompt=run.query_prompt,
        )
    else:
        model.tokenizer.save(draft, sampling=_sampling(run.sampling_temperature))
    _describe(draft, model, role, run, meta, weights)
    if directory.exists():  # a directory cannot be replaced in one step
        directory.rename(old)
    draft.rename(directory)
    if old.exists():
        old.rmtree()
    logger.info("%s of step %d exported to %s", role, meta["step"], directory)


def _kept(model: Model, role: str) -> dict[str, Any]:
    """Fields of config.json that are not the architecture's: the source's, else ours.

    The tokens that end a profile are those of generation_config.json.
    """
    tokenizer = model.tokenizer
    tokens = {"eos_token_id": list(tokenizer.end_ids), "pad_token_id": tokenizer.pad_id}
    if tokenizer.bos_id is not None:
        tokens["bos_token_id"] = tokenizer.bos_id
    directory = model.source.directory
    if not directory:
        return tokens
    if role == "encoder":
        directory = sentence_layout.read(directory).transformer
    source = hf.read_source(directory)
    source = {**(source.get("text_config") or {}), **source}
    return tokens | {k: source[k] for k in hf.KEPT if source.get(k) is not None}


def _sampling(temperature: float) -> dict[str, Any]:
    """Fields of generation_config.json: how profiles are sampled when they are used.

    The source's own (Gemma 3: the 64 likeliest tokens, of 95%) are not kept: training
    and evaluation sample the whole distribution. Where top_k is absent, transformers
    takes 50.
    """
    if not temperature:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


def _describe(
    directory: epath.Path,
    model: Model,
    role: str,
    run: Run,
    meta: Mapping[str, Any],
    weights: int,
) -> None:
    """The licence files, training_config.json and the card."""
    source, gemma = model.source, model.cfg.norm_plus_one
    before = {path.name for path in directory.iterdir()}
    card.copy_notices(source, directory, gemma=gemma)
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
        "licence": card.licence(source, gemma=gemma),
        "notices": sorted({p.name for p in directory.iterdir()} - before),
        "data": run.data,
        "fingerprint": run.fingerprint,
        "max_completion_tokens": run.max_completion_tokens,
        **record.code(),
        "config": run.config,
    }
    text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    (directory / card.FACTS).write_text(text)
    (directory / card.CARD).write_text(card.render(facts, None))


def add_evaluation(
    workdir: str | os.PathLike, result: Mapping[str, Any], weights: set[int]
) -> None:
    """Puts the evaluation on the cards of the exports that it is about.

    Args:
        result: content of evaluation.json.
        weights: `fingerprint` of the parameters of each model that was evaluated.
    """
    for role in ("profiler", "encoder"):
        directory = epath.Path(workdir) / "export" / role
        if not (directory / card.FACTS).exists():
            continue
        facts = json.loads((directory / card.FACTS).read_text())
        if facts["weights"] in weights:
            part = directory / f".{card.CARD}.part"
            part.write_text(card.render(facts, result))
            part.replace(directory / card.CARD)
