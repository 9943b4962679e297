"""How a run resumes: what must be unchanged since its start, and whether it may resume.

A checkpoint has a note of the settings its stage started with. A stage resumes only if
model, tokenizer, data, seed and batch sizes are unchanged. Otherwise the result would
not be that of any config. Other settings may change; each change is logged.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from blue.errors import UserError
from blue.models import families
from blue.workdir import renamed, settings
from blue.workdir.checkpoints import Checkpoints
from blue.workdir.stages import STAGES

logger = logging.getLogger("blue")

# Settings that do not affect training, or that are compared elsewhere.
QUIET = (
    *("log.", "evaluate.", "write_profiles.", "alarms.", "watchdog.", "data.", "stage"),
    *("checkpoint_", "eval_every", "max_nonfinite", "resume", "preemption_grace_s"),
    *("platform", "num_devices", "num_processes", "distributed."),
)
MESH = "mesh."


# --- what must be unchanged


def note(
    config: Mapping[str, Any],
    *,
    model: Mapping[str, Any],
    tokenizer: str,
    data: str,
    fields: Sequence[str],
    devices: int,
) -> dict[str, Any]:
    """The note of a checkpoint's settings; JSON.

    Args:
        config: of the run, nested.
        model: fields of the architecture.
        tokenizer, data: fingerprints.
        fields: names of the config's sizes that must not change.
    """
    flat = dict(settings.leaves(config))
    same = {f"model.{key}": value for key, value in model.items()}
    same |= {"tokenizer": tokenizer, "data": data, "seed": flat["seed"]}
    same |= {field: flat[field] for field in fields}
    return _plain({"same": same, "config": config, "devices": devices})


def check(meta: Mapping[str, Any], wanted: Mapping[str, Any], directory: str) -> None:
    """Raises `UserError` unless a checkpoint's note allows a run with the note `wanted`
    to resume; warns of every other change."""
    found = meta.get("same")
    if found is None:
        logger.warning("%s: made before settings were noted: not compared", directory)
        return
    changed = _changes(_with_later_fields(found, wanted["same"]), wanted["same"])
    if changed:
        raise UserError(
            f"{directory}: begun with other settings: {'; '.join(changed)}; put them "
            "back to go on, or take another --workdir"
        )
    begun = renamed.with_new_names(meta["config"])
    old, new = dict(settings.leaves(begun)), dict(settings.leaves(wanted["config"]))
    compared = set(wanted["same"])
    loud = lambda k: not k.startswith((*QUIET, MESH)) and k not in compared
    changed = _changes(*({k: v for k, v in c.items() if loud(k)} for c in (old, new)))
    if changed:
        logger.warning("resumed with other settings: %s", "; ".join(changed))
    layout = lambda c: {k: v for k, v in c.items() if k.startswith(MESH)}
    if layout(old) != layout(new) or meta["devices"] != wanted["devices"]:
        logger.warning(
            "resumed with another mesh or number of devices (%d, were %d): the same "
            "data in the same order, but sums round otherwise: not bit for bit",
            wanted["devices"],
            meta["devices"],
        )


def _with_later_fields(
    found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """An older note with the architecture's newer fields added."""
    prefix = "model."
    fields = {
        k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)
    }
    later = {f"{prefix}{k}": v for k, v in families.later_fields(fields).items()}
    return {k: v for k, v in later.items() if k in wanted} | dict(found)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} was {_shown(old, key)}, is {_shown(new, key)}"
        for key in sorted({*old, *new})
        if _shown(old, key) != _shown(new, key)
    ]


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "not there"


def _plain(tree: Any) -> Any:
    """`tree` as JSON would return it."""
    return json.loads(json.dumps(tree))


# --- whether to resume: config.resume


def step_of(mode: str) -> int | None:
    """The step of `step:<n>`; None for the other modes. Raises `UserError`."""
    if mode in ("auto", "must", "never"):
        return None
    match = re.fullmatch(r"step:(\d+)", mode)
    if not match:
        raise UserError(f"resume is {mode!r}, must be auto, must, never or step:<n>")
    return int(match[1])


def open_stages(mode: str, workdir: str, stages: Sequence[str]) -> None:
    """Refuses a run that `mode` forbids; reopens a finished stage that goes back.

    auto: resumes where possible. must: refuses to start from scratch. never: refuses a
    workdir in which one of the stages has begun. step:<n>: goes back to that step of
    the run's only stage. Raises `UserError`.
    """
    training = [stage for stage in stages if STAGES[stage].trains]
    folders = {stage: epath.Path(workdir) / "checkpoints" / stage for stage in training}
    begun = {s: f for s, f in folders.items() if f.exists() and any(f.iterdir())}
    if mode == "never" and begun:
        raise UserError(
            f"resume=never, and {' and '.join(map(str, begun.values()))} has something "
            "in it: take another --workdir, or resume=auto"
        )
    if mode == "must" and training and not begun:
        raise UserError(
            f"resume=must, and none of {', '.join(training)} has begun in {workdir}: "
            "is this the right --workdir? resume=auto begins"
        )
    step = step_of(mode)
    if step is None:
        return
    if len(stages) != 1 or not begun:
        raise UserError(
            f"resume={mode} goes back in one stage that has begun, and stages are "
            f"{', '.join(stages)}: name it with --config.stage=NAME"
        )
    checkpoints = Checkpoints(folders[stages[0]], keep=1, milestone_every=0)
    checkpoints.reopen(step)
