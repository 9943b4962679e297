"""A trained model as a Hugging Face directory: export/profiler/ or export/encoder/.

Another run loads it, tokenizer included, with `--config.profiler.checkpoint=DIR` (or
`encoder.checkpoint`), and so do transformers and vLLM.
"""

import logging
import os
import shutil
from pathlib import Path

import jax

from blue.checkpoints import Checkpoints
from blue.inference import Model
from blue.models import hf

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
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        model.params,
    )
    params, meta = checkpoints.restore_best(shapes)
    directory = Path(workdir) / "export" / role
    draft, old = (directory.with_name(f".{role}.{end}") for end in ("draft", "old"))
    writes = jax.process_index() == 0
    for left in (draft, old) if writes else ():  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    tokenizer = model.tokenizer
    tokens = {"eos_token_id": list(tokenizer.end_ids), "pad_token_id": tokenizer.pad_id}
    if tokenizer.bos_id is not None:
        tokens["bos_token_id"] = tokenizer.bos_id
    hf.save(draft, model.cfg, params, source=tokens)
    if not writes:
        return
    tokenizer.save(draft)
    if directory.exists():  # a directory cannot be replaced in one step
        directory.rename(old)
    draft.rename(directory)
    shutil.rmtree(old, ignore_errors=True)
    logger.info("%s of step %d exported to %s", role, meta["step"], directory)
