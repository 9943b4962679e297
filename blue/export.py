"""A trained model as a Hugging Face directory: export/profiler/ or export/encoder/.

Adapters are merged into it, and written by themselves: export/<role>_adapter/.

Another run loads it, tokenizer included, with `--config.profiler.checkpoint=DIR` (or
`encoder.checkpoint`), and so do transformers and vLLM.
"""

import json
import logging
import os
import shutil
from pathlib import Path

import jax
from etils import epath

from blue import adapters, programs
from blue.checkpoints import Checkpoints
from blue.inference import Model
from blue.models import hf, lora, peft
from blue.sharding import to_host

logger = logging.getLogger("blue")


def write(
    checkpoints: Checkpoints, model: Model, workdir: str | os.PathLike, role: str
) -> None:
    """The stage's best parameters, in the place of an earlier export of the role.

    Args:
        model: what the stage started from: its shapes, configuration and tokenizer.
        role: "profiler" or "encoder".

    The directory appears complete or not at all.
    """
    frozen, trained = lora.split(model.params)
    params, meta = checkpoints.restore_best(adapters.shapes_of(trained))
    if model.cfg.lora:
        params = lora.join(frozen, params)
        shapes = adapters.shapes_of(params)
        params = programs.make_merge(model.cfg, shapes)(params)
    directory = Path(workdir) / "export" / role
    draft = _draft(directory)
    tokenizer = model.tokenizer
    tokens = {"eos_token_id": list(tokenizer.end_ids), "pad_token_id": tokenizer.pad_id}
    if tokenizer.bos_id is not None:
        tokens["bos_token_id"] = tokenizer.bos_id
    hf.save(draft, lora.without(model.cfg), params, source=tokens)
    if jax.process_index() != 0:
        return
    tokenizer.save(draft)
    _put_in_place(draft, directory)
    logger.info("%s of step %d exported to %s", role, meta["step"], directory)


TASKS = {"profiler": "CAUSAL_LM", "encoder": "FEATURE_EXTRACTION"}  # PEFT's words


def write_adapters(
    checkpoints: Checkpoints,
    model: Model,
    workdir: str | os.PathLike,
    role: str,
    base: str,
) -> None:
    """The stage's best adapters, unmerged, as export/<role>_adapter/ for PEFT.

    base: the directory of the model they belong to, or empty. A stage without adapters
    takes away those of an earlier one, which belong to no model that is exported.
    """
    directory = Path(workdir) / "export" / f"{role}_adapter"
    if model.cfg.lora is None:
        if jax.process_index() == 0:
            shutil.rmtree(directory, ignore_errors=True)
        return
    _, trained = lora.split(model.params)
    best, _ = checkpoints.restore_best(adapters.shapes_of(trained))
    best = to_host(best)
    if jax.process_index() != 0:
        return
    draft = _draft(directory)
    peft.save(draft, model.cfg, best, task=TASKS[role], base=base, tower=_tower(base))
    _put_in_place(draft, directory)


def _tower(base: str) -> str:
    """What transformers calls our decoder inside the model of this directory."""
    if not base:
        return ""
    source = json.loads((epath.Path(base) / "config.json").read_text())
    return "language_model" if source["model_type"] == "gemma3" else ""


def _draft(directory: Path) -> Path:
    """Where to write what will stand in the place of `directory`."""
    draft, old = _beside(directory)
    for left in (draft, old):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    return draft


def _put_in_place(draft: Path, directory: Path) -> None:
    _, old = _beside(directory)
    if directory.exists():  # a directory cannot be replaced in one step
        directory.rename(old)
    draft.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _beside(directory: Path) -> tuple[Path, Path]:
    draft, old = (f".{directory.name}.{end}" for end in ("draft", "old"))
    return directory.with_name(draft), directory.with_name(old)
