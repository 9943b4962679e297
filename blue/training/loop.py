"""The frame around the steps of every training stage.

    loop = Loop(run, STAGE, model, optimizer, num_steps=num_steps)
    for step in loop:
        loop.state, info = update(loop.state, loop.frozen, *batch)
        metrics = loop.check(info, batch)
        loop.report(metrics, shown=("policy/loss",))
    loop.finish(facts, role)

It starts or resumes, traces, reports to the watchdog, logs, saves and exports the
result. It stops on numbers that are not finite and when the process is preempted. What
a step computes is up to the stage.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import optax
from ml_collections import ConfigDict

from blue.hub import export
from blue.hub.model import Model
from blue.models import lora
from blue.models.decoder import Params
from blue.runtime import preemption, programs, tracing, watchdog
from blue.runtime.sharding import no_hidden_transfers, to_host
from blue.sources.open_run import Run
from blue.sources.role import stage_checkpoints
from blue.training import session
from blue.training.alarm_watch import watch_alarms
from blue.workdir.writer import Writer

logger = logging.getLogger("blue")


# step -> the update program of that step, and its batch on the devices
NextStep = Callable[[int], tuple[programs.Program, tuple]]


def is_finished(config: ConfigDict, workdir: str, stage: str) -> bool:
    """Whether `stage` has finished in this workdir; says so in the log."""
    done = stage_checkpoints(config, workdir, stage).finished() is not None
    if done:
        logger.info("stage %s is finished already: skipped", stage)
    return done


class Loop:
    """Steps of a training stage, from its newest checkpoint to its end.

    `state` is the training state, which the stage replaces in every step; `frozen` the
    parameters that are not trained, where the model has adapters. Raises `UserError`
    where the checkpoint does not fit the run.
    """

    def __init__(
        self,
        run: Run,
        stage: str,
        model: Model,
        optimizer: optax.GradientTransformation,
        *,
        num_steps: int,
    ) -> None:
        config = run.config
        self._run, self._stage, self._model = run, stage, model
        self._checkpoints = stage_checkpoints(config, run.workdir, stage)
        self._note = session.checkpoint_note(
            config, model, data=run.examples.fingerprint, stage=stage
        )
        self.state, self.frozen, self.first_step = session.start(
            self._checkpoints, optimizer, model, run.mesh, self._note, config.resume
        )
        self.num_steps = num_steps
        self.writer = Writer(
            run.workdir,
            stage=stage,
            first_step=self.first_step,
            num_steps=num_steps,
            every=config.log.every,
            tensorboard=config.log.tensorboard,
            hparams=config.to_dict(),
        )
        self._alarms_at = watch_alarms(config, run.workdir, stage, self.writer)
        self.step, self.started = self.first_step, time.monotonic()
        self.save_s = 0.0  # of the newest checkpoint before the step

    @property
    def params(self) -> Params:
        """The parameters of the model as they are now."""
        return lora.join(self.frozen, self.state.params)

    @property
    def last(self) -> bool:
        """Whether this is the last step."""
        return self.step + 1 == self.num_steps

    def due(self, every: int) -> bool:
        """Whether this step is the last or a multiple of `every`; 0: never."""
        return bool(every) and (self.last or (self.step + 1) % every == 0)

    def __iter__(self) -> Iterator[int]:
        """The numbers of the remaining steps. All programs are compiled first."""
        programs.wait()
        steps = range(self.first_step, self.num_steps)
        folder = f"{self._run.workdir}/tensorboard/{self._stage}"
        for step in tracing.steps(steps, self._run.config.profile_steps, folder):
            self.step, self.started = step, time.monotonic()
            watchdog.sign_of_life("data", step=step)
            yield step

    def check(
        self, info: Mapping[str, Any], batch: Mapping[str, Any]
    ) -> dict[str, float]:
        """The metrics of an update as numbers on the host.

        If they are not finite, the update was skipped and `batch`, arrays by name, is
        saved for a replay. Raises `NonFinite` after too many in a row.
        """
        found = {key: float(value) for key, value in to_host(info).items()}
        keep = lambda: session.keep_batch(
            self._run.workdir, self._stage, self.step, batch
        )
        limit = self._run.config.max_nonfinite
        session.stop_if_not_finite(found, self.step, limit, keep)
        return found

    def keep_best(self, value: float) -> None:
        """Replaces `best` if this step's validation is at least as good, or if a
        resumed run repeats the step."""
        best, done = self._checkpoints.best(), self.step + 1
        if best is None or value > best["value"] or best["step"] >= done:
            self._checkpoints.save_best(done, self.state.params, self._note, value)

    def report(
        self, metrics: Mapping[str, float | int], *, shown: Sequence[str]
    ) -> None:
        """Ends a step: logs its metrics, those `shown` also on the console, and saves.

        Raises `Preempted` once the checkpoint of a preempted run is saved.
        """
        step, done = self.step, self.step + 1
        if self.writer.due(step):
            self.writer.scalars(step, {**metrics, **self._alarms_at(step, metrics)})
        self.writer.progress(step, {key: metrics[key] for key in shown})
        stop = preemption.requested()
        if stop or self.due(self._run.config.checkpoint_every):
            watchdog.sign_of_life("save")
            saving = time.monotonic()
            self._checkpoints.save(done, self.state, self._note)
            self.save_s = time.monotonic() - saving
        if stop:
            session.end_preempted(self.writer, done)

    def finish(self, facts: export.RunFacts, role: str) -> None:
        """Writes the result: `best`, the export of `role`, and the mark of a finished
        stage.

        Without validation the last parameters are the best.
        """
        watchdog.sign_of_life("save")
        self.step = self.num_steps - 1
        if self._checkpoints.best() is None:
            self.keep_best(0.0)
        self.writer.close()
        export.write(self._checkpoints, self._model, self._run.workdir, role, facts)
        self._checkpoints.finish({"steps": self.num_steps})
        self._checkpoints.close()


def run_supervised(loop: Loop, next_step: NextStep) -> None:
    """All steps of a supervised stage: each is a batch and an update."""
    for step in loop:
        with no_hidden_transfers():
            update, batch = next_step(step)
            data_s = time.monotonic() - loop.started
            watchdog.sign_of_life("update")
            loop.state, info = update(loop.state, loop.frozen, *batch)
            metrics = loop.check(info, {f"input_{n}": a for n, a in enumerate(batch)})
        metrics["time/step_s"] = time.monotonic() - loop.started
        metrics["time/data_s"] = data_s
        metrics["speed/compiles"] = programs.compiles["count"]
        loop.report(metrics, shown=("policy/loss",))
