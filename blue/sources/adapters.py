"""Adapters (LoRA) from stage to stage: added to a model, saved alone, merged later.

A stage that trains adapters saves only the adapters. To use its result, load the base
that the stage started from and merge the adapters into it. A note in the checkpoint
says which base, rank and alpha.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from blue.errors import UserError
from blue.hub.model import Model
from blue.models import lora
from blue.models.decoder import DecoderConfig, Lora, Params
from blue.models.params import abstract_params, make_adapters, make_merge
from blue.runtime.sharding import put, replicated
from blue.workdir.checkpoints import Checkpoints, fingerprint


def add(model: Model, fresh: Lora, mesh: Mesh, *, seed: int, dtype: str) -> Model:
    """The model with new adapters, which add nothing yet. Its arrays are not copied."""
    cfg = dataclasses.replace(model.cfg, lora=fresh)
    key = put(np.uint32(seed), replicated(mesh))
    trained = make_adapters(cfg, mesh, dtype)(key)
    params = lora.join(model.params, trained)
    return model._replace(cfg=cfg, params=params, origin=_origin(model))


def _origin(model: Model) -> str:
    """Identifies a base. Merging rounds differently on other devices, so a merged base
    is identified by what it was merged from."""
    return model.origin or f"{fingerprint(model.params):08x}"


def adapter_note(model: Model) -> dict[str, Any]:
    """The note for the meta of this model's checkpoints; JSON."""
    if model.cfg.lora is None:
        return {}
    fields = model.cfg.lora._asdict()
    fields["targets"] = list(fields["targets"])
    return {"lora": fields | {"base": model.origin}}


def check(meta: Mapping[str, Any], model: Model, directory: str) -> None:
    """Raises `UserError` unless a checkpoint's note is that of `model`. Another alpha
    or base has the same leaves and would otherwise go unnoticed."""
    found, wanted = meta.get("lora", {}), adapter_note(model).get("lora", {})
    for field in sorted({*found, *wanted}):
        has, want = found.get(field), wanted.get(field)
        if has != want:
            raise UserError(
                f"{directory}: adapters with {field} {has}, and the config gives "
                f"{want}: go on with the settings and checkpoint it was begun with, or "
                "take another --workdir"
            )


def load_best(
    checkpoints: Checkpoints,
    cfg: DecoderConfig,
    mesh: Mesh,
    *,
    dtype: str,
    start: Callable[[], Model],
) -> tuple[Params, dict[str, Any], str]:
    """The best parameters of a stage, for the plain `cfg`; their meta; their origin.

    start: loads the model that the stage started from. Only adapters need it.
    """
    has = (checkpoints.best() or {}).get("lora")
    if not has:
        shapes = abstract_params(cfg, mesh, dtype)
        return *checkpoints.restore_best(shapes), ""
    kept = Lora(has["rank"], has["alpha"], tuple(has["targets"]))
    cfg = dataclasses.replace(cfg, lora=kept)
    shapes = abstract_params(cfg, mesh, dtype)
    trained, meta = checkpoints.restore_best(lora.split(shapes)[1])
    base = start()
    if has["base"] != _origin(base):
        raise UserError(
            f"{checkpoints.directory}: its adapters were trained on another model than "
            f"{base.name}; give the checkpoint, preset and seed of that run"
        )
    params = make_merge(cfg, shapes)(lora.join(base.params, trained))
    return params, meta, f"{_origin(base)}+{fingerprint(trained):08x}"
