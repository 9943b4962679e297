"""Alarms while a stage trains: config -> limits, and alarms for each logged line."""

import logging
from collections import deque
from collections.abc import Callable, Mapping

import jax
from ml_collections import ConfigDict

from blue.errors import UserError
from blue.training import alarms
from blue.workdir.writer import Writer, last_lines

logger = logging.getLogger("blue")


def alarm_limits(config: ConfigDict) -> alarms.Limits:
    """config.alarms, for the precision and the batch of this run."""
    return alarms.limits(
        config.alarms.to_dict(),
        # Devices other than CPUs also round the factors of float32 products.
        exact=config.dtype.compute == "float32" and jax.default_backend() == "cpu",
        completions=config.batch_size * config.group_size,
    )


def check_first_step(config: ConfigDict, info: Mapping[str, float], step: int) -> None:
    """Stops the run if the numbers of its first step contradict each other."""
    faults = alarms.first_step_faults(info, alarm_limits(config), resumed=step > 0)
    if faults:
        raise UserError(f"step {step}, the first after the start: {'; '.join(faults)}")


def watch_alarms(
    config: ConfigDict, workdir: str, stage: str, writer: Writer
) -> Callable[[int, alarms.Metrics], dict[str, int]]:
    """(step, metrics of its line) -> `alarm/*` of that line, 0 or 1.

    An alarm is logged when it begins and when it ends, also on TensorBoard. Alarms use
    logged steps only; a resumed run reads earlier ones from metrics.jsonl.
    """
    limits = alarm_limits(config)
    most = limits.window + limits.patience
    lines: deque = deque(last_lines(workdir, stage, most), maxlen=most)

    def at_step(step: int, metrics: alarms.Metrics) -> dict[str, int]:
        found = alarms.step_alarms(tuple(lines), metrics, limits)
        for alarm in found.values():
            if alarm.changed and jax.process_index() == 0:  # only it has the lines
                line = f"{'ALARM' if alarm.on else 'over'}: {alarm.name}: {alarm.text}"
                logger.log(
                    logging.WARNING if alarm.on else logging.INFO,
                    "step %d: %s", step, line,
                )  # fmt: skip
                writer.text(step, f"alarm/{alarm.name}", line)
        marks = {f"alarm/{name}": int(alarm.on) for name, alarm in found.items()}
        lines.append({**metrics, **marks})
        return marks

    return at_step
