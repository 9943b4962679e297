"""What training stages share around their loop: optimizer, start or resume, stop."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blue.errors import NonFinite, Preempted, UserError
from blue.hub import export
from blue.hub.model import Model
from blue.hub.source import Source, fetch
from blue.models import lora
from blue.models.decoder import Params
from blue.models.params import shapes_of
from blue.runtime.sharding import to_host
from blue.sources import adapters
from blue.sources.open_run import Run
from blue.training import optimizers
from blue.training.optimizers import (
    TrainState,
    make_optimizer,
    make_schedule,
    non_finite_leaves,
)
from blue.workdir import bad_batches, record, resume
from blue.workdir.checkpoints import Checkpoints
from blue.workdir.stages import STAGES
from blue.workdir.writer import Writer, has_lines

logger = logging.getLogger("blue")


def optimizer_of(
    config: ConfigDict, section: ConfigDict, *, b2: float
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The schedule of `section` (lr, lr_schedule, lr_warmup_steps, num_steps), and
    Adam under it."""
    schedule = make_schedule(
        section.lr,
        kind=section.lr_schedule,
        warmup_steps=section.lr_warmup_steps,
        num_steps=section.num_steps,
    )
    optimizer = make_optimizer(
        schedule,
        b1=config.adam_b1,
        b2=b2,
        eps=config.adam_eps,
        grad_clip=config.grad_clip,
    )
    return schedule, optimizer


def checkpoint_note(
    config: ConfigDict, model: Model, *, data: str, stage: str
) -> dict[str, Any]:
    """What every checkpoint of the stage records beside its state.

    data: fingerprint of the examples.
    """
    shape = dataclasses.asdict(lora.without(model.cfg))
    kept = resume.note(
        record.redacted(config),
        model=shape,
        tokenizer=model.tokenizer.fingerprint,
        data=data,
        fields=STAGES[stage].sizes,
        devices=jax.device_count(),
    )
    return {**kept, **adapters.adapter_note(model)}


def start(
    checkpoints: Checkpoints,
    optimizer: Any,
    model: Model,
    mesh: Mesh,
    kept: Mapping[str, Any],
    mode: str,
) -> tuple[TrainState, Params, int]:
    """The state of the newest good checkpoint, or a new one; the frozen parameters; the
    step.

    The state is checked to be finite; updates keep it finite.
    kept: the `note` of this run. mode: config.resume.
    """
    _refuse_non_finite(model.params, model.name, "take another")
    frozen, trained = lora.split(model.params)
    shapes = shapes_of(trained)
    workdir, _, stage = checkpoints.directory.rsplit("/", 2)
    traces = ["lines of metrics.jsonl"] if has_lines(workdir, stage) else []
    if checkpoints.latest_step(traces=traces) is not None:
        abstract = optimizers.abstract_state(shapes, optimizer, mesh)
        step = resume.step_of(mode)
        state, meta = checkpoints.restore(abstract, step)
        resume.check(meta, kept, checkpoints.directory)
        adapters.check(meta, model, checkpoints.directory)
        name = f"{checkpoints.directory}/{meta['step']}"
        _refuse_non_finite(state, name, "remove it to go on from an older one")
        if step is not None:
            checkpoints.go_back(step)
        return state, frozen, meta["step"]
    state = optimizers.make_init_state(shapes, optimizer, mesh)(trained)
    # the first save compiles the fingerprint
    checkpoints.save(0, state, kept)
    return state, frozen, 0


def _refuse_non_finite(tree: Any, name: str, advice: str) -> None:
    bad = non_finite_leaves(tree)
    if bad:
        raise UserError(
            f"{name} has numbers that are not finite in {', '.join(bad[:3])}"
            f"{' and others' if len(bad) > 3 else ''}: {advice}"
        )


def keep_batch(workdir: str, stage: str, step: int, arrays: Mapping[str, Any]) -> None:
    """Writes the batch of a skipped update for `blue.training.replay`."""
    host = {k: to_host(x) if isinstance(x, jax.Array) else x for k, x in arrays.items()}
    if jax.process_index() == 0:
        path = bad_batches.save(workdir, stage, step, host)
        rows = bad_batches.bad_rows(host).tolist()
        where = f" (in what came in: rows {', '.join(map(str, rows))})" if rows else ""
        logger.warning(
            "step %d: not finite%s, update skipped; its batch is in %s",
            step, where, path,
        )  # fmt: skip


def stop_if_not_finite(
    info: dict[str, float], step: int, limit: int, keep: Callable[[], None]
) -> None:
    """Takes `skipped_in_row` out of `info`; too many in a row end the run (exit 70).

    keep() writes the batch: the first of several in a row, and the one that ends the
    run.
    """
    skipped = info.pop("skipped_in_row")
    if skipped == 1 or skipped >= limit:
        keep()
    if skipped >= limit:
        raise NonFinite(
            f"step {step}: {int(skipped)} updates in a row had a non-finite loss, "
            "gradient or parameter, or no valid reward, and were skipped; nothing of "
            "them was saved. python -m blue.training.replay tells more of the batches "
            "in bad_batches/"
        )


def end_preempted(writer: Writer, done: int) -> None:
    """Ends a preempted run whose checkpoint of step `done` is saved (exit 75)."""
    writer.close()
    raise Preempted(f"step {done} is saved; the same command continues")


def facts(
    run: Run, stage: str, *, query_prompt: str = "", validated: bool = False
) -> export.RunFacts:
    """What an export records about the run of `stage` that made it."""
    config = run.config
    ties = config.warm_start.tie_to_encoder and stage != "encoder"
    borrows = ties and config.encoder.kind == "own" and config.encoder.checkpoint
    return export.RunFacts(
        stage=stage,
        config=record.redacted(config),
        data=run.log.name,
        fingerprint=run.examples.fingerprint,
        validated=validated,
        sampling_temperature=config.evaluate.sampling_temperature,
        max_completion_tokens=config.max_completion_tokens,
        max_tokens=config.encoder.max_tokens,
        query_prompt=query_prompt,
        lender=fetch(config.encoder.checkpoint, "encoder.checkpoint")
        if borrows
        else Source(),
    )
