"""What training stages share around their loop: start or resume, stop, finish; and the
whole loop of the two supervised stages."""

import logging
import time
from collections.abc import Callable
from typing import Any

import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blue import adapters, export, preemption, programs, record, sources, watchdog
from blue.checkpoints import Checkpoints
from blue.data.examples import Examples
from blue.data.log import Log
from blue.errors import NonFinite, Preempted
from blue.inference import Model
from blue.models import lora
from blue.models.decoder import Params
from blue.optimizers import TrainState, make_optimizer, make_schedule
from blue.sharding import to_host
from blue.writer import Writer

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


def start(
    checkpoints: Checkpoints, optimizer: Any, model: Model, mesh: Mesh
) -> tuple[TrainState, Params, int]:
    """The state of the newest good checkpoint, or one around what is trained of the
    model; the model's frozen parameters; and the step."""
    frozen, trained = lora.split(model.params)
    shapes = adapters.shapes_of(trained)
    if checkpoints.latest_step() is not None:
        abstract = programs.abstract_state(shapes, optimizer, mesh)
        state, meta = checkpoints.restore(abstract)
        adapters.check(meta, model, checkpoints.directory)
        logger.info("resumed at step %d", meta["step"])
        return state, frozen, meta["step"]
    state = programs.make_init_state(shapes, optimizer, mesh)(trained)
    # the first save compiles what all of them need
    checkpoints.save(0, state, adapters.note(model))
    return state, frozen, 0


def stop_if_not_finite(info: dict[str, float], step: int, limit: int) -> None:
    """Takes `skipped_in_row` out of `info`; too many in a row end the run (exit 70)."""
    skipped = info.pop("skipped_in_row")
    if skipped >= limit:
        raise NonFinite(
            f"step {step}: {int(skipped)} updates in a row had a non-finite loss or "
            "gradient and were skipped; nothing of them was saved"
        )


def leave(writer: Writer, done: int) -> None:
    """Ends a preempted run whose checkpoint of step `done` is saved (exit 75)."""
    writer.close()
    raise Preempted(f"step {done} is saved; the same command goes on")


def about(
    config: ConfigDict,
    log: Log,
    examples: Examples,
    *,
    stage: str,
    query_prompt: str = "",
    validated: bool = False,
) -> export.Run:
    """What an export says of the run of `stage` that made it."""
    return export.Run(
        stage=stage,
        config=record.redacted(config),
        data=log.name,
        fingerprint=examples.fingerprint,
        validated=validated,
        sampling_temperature=config.evaluate.sampling_temperature,
        max_completion_tokens=config.max_completion_tokens,
        max_tokens=config.encoder.max_tokens,
        query_prompt=query_prompt,
    )


def train_supervised(
    config: ConfigDict,
    workdir: str,
    *,
    run: export.Run,
    num_steps: int,
    role: str,
    model: Model,
    optimizer: Any,
    mesh: Mesh,
    next_step: Callable[[int], tuple[programs.Program, tuple]],
) -> None:
    """Steps of a supervised stage from the newest checkpoint to its end.

    Of a model with adapters, these alone are trained. next_step(step) -> the update
    program of that step and its batch on the devices. The last parameters are left as
    the stage's result, and exported as `role` (profiler or encoder).
    """
    checkpoints = sources.stage_checkpoints(config, workdir, run.stage)
    state, frozen, first_step = start(checkpoints, optimizer, model, mesh)
    note = adapters.note(model)
    writer = Writer(
        workdir,
        stage=run.stage,
        first_step=first_step,
        num_steps=num_steps,
        every=config.log.every,
        tensorboard=config.log.tensorboard,
        hparams=config.to_dict(),
    )
    programs.wait()
    for step in range(first_step, num_steps):
        started = time.monotonic()
        watchdog.beat("data", step=step)
        update, batch = next_step(step)
        data_s = time.monotonic() - started
        watchdog.beat("update")
        state, info = update(state, frozen, *batch)
        info = {key: float(value) for key, value in to_host(info).items()}
        stop_if_not_finite(info, step, config.max_nonfinite)
        step_s = time.monotonic() - started
        if writer.due(step):
            metrics = info | {"time/step_s": step_s, "time/data_s": data_s}
            metrics["speed/compiles"] = programs.compiles["count"]
            writer.scalars(step, metrics)
        writer.progress(step, {"policy/loss": info["policy/loss"]})
        done = step + 1
        stop = preemption.requested()
        if done == num_steps or stop or done % config.checkpoint_every == 0:
            watchdog.beat("save")
            checkpoints.save(done, state, {"config": config.to_dict(), **note})
        if stop:
            leave(writer, done)
    watchdog.beat("save")
    checkpoints.save_best(num_steps, state.params, note, 0.0)
    writer.close()
    export.write(checkpoints, model, workdir, role, run)
    checkpoints.finish({"steps": num_steps})
    checkpoints.close()
