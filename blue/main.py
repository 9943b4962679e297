"""The command: flags, stages, exit codes.

    python -m blue.main --config=configs/NAME.py[:tiny] --workdir=DIR [--config.F=V ...]

Exit codes:
    0    done
    2    the user's mistake, in one line
    70   numbers that are not finite
    71   a hang
    75   preempted, or another process lost: start it again
    130  interrupted
Anything else keeps its traceback.
"""

import importlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from ml_collections import ConfigDict

from blue.errors import NonFinite, Preempted, UserError
from blue.runtime import xla_flags
from blue.workdir import settings, usage
from blue.workdir.stages import STAGES

logger = logging.getLogger("blue")
FORMAT = "%(asctime)s %(levelname).1s %(message)s"

# Gives the TPU compiler without a TPU; jax and libtpu read it when they are loaded.
COMPILER_ONLY = {
    "TPU_SKIP_MDS_QUERY": "1",
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def main(argv: Sequence[str]) -> int:
    """Run what `argv` asks for; the exit code."""
    if {"--help", "-h", "--helpfull", "--helpshort"} & set(argv[1:]):
        sys.stdout.write(usage.text())
        return 0
    set_up_logging()
    code, reason = _run(argv)
    if reason:
        sys.stderr.write(f"{reason}\n")
    if "jax" in sys.modules:
        from blue.runtime import distributed

        return distributed.end_process(code, reason)
    return code


def _run(argv: Sequence[str]) -> tuple[int, str]:
    """Exit code, and the line that says why it is not 0."""
    try:
        run(argv)
    except UserError as error:
        return 2, f"error: {' '.join(str(error).split())}"
    except NonFinite as error:
        return 70, f"stopped: {error}"
    except Preempted as error:
        return 75, f"preempted: {error}"
    except KeyboardInterrupt:
        return 130, "interrupted"
    except Exception as error:
        from blue.runtime import distributed

        if not distributed.joined():
            raise
        traceback.print_exc()  # before waiting for the other processes
        reason = " ".join(str(error).split())[:300]
        return distributed.CRASH, f"{type(error).__name__}: {reason}"
    return 0, ""


def run(argv: Sequence[str]) -> None:
    """The stages of the config, one after the other; finished ones skip themselves."""
    config, workdir = settings.load(argv)
    stages = settings.check(config)
    only_compiles = STAGES[stages[0]].only_compiles
    if only_compiles:
        compiler_only()
    if not any(STAGES[stage].needs_devices for stage in stages):
        config.platform, config.num_devices, config.num_processes = "", 0, 0
    if config.xla_flags:  # before jax starts
        xla_flags.set_for(xla_flags.platform_of(os.environ), os.environ)
    # these import jax: a mistake in the config is reported before
    from blue.rewards import program
    from blue.runtime import compile_cache, disk, distributed, preemption, watchdog
    from blue.workdir import record, resume, run_lock, startup

    program.rewards_of(config.rewards.to_dict())  # checks, before any stage
    if not only_compiles:
        distributed.join(**config.distributed.to_dict())
    fields = dict(settings.leaves(ConfigDict(record.redacted(config))))
    del fields["distributed.process_id"]  # differs between processes
    startup.check(
        fields,
        platform=config.platform,
        num_devices=config.num_devices,
        num_processes=config.num_processes,
    )
    compile_cache.use(config.compile_cache)
    if (index := startup.process()) is not None:
        name_process(index)
    limits = config.watchdog.to_dict()
    with (
        disk.disk_errors_in_one_line(workdir),
        run_lock.hold(workdir),
        watchdog.watching(workdir, limits, process=startup.process()),
        preemption.listening(config.preemption_grace_s),
    ):
        resume.open_stages(config.resume, workdir, stages)
        record.save(config, workdir)
        for name, value in record.redacted(config).items():
            logger.info("%s: %s", name, json.dumps(value))
        for stage in stages:
            preemption.leave_if_requested(f"before stage {stage}")
            logger.info("stage %s", stage)
            watchdog.sign_of_life("load", stage=stage)
            module = importlib.import_module(f"blue.stages.{STAGES[stage].module}")
            module.run(config, workdir)


def compiler_only() -> None:
    """Makes jax use the TPU compiler without a TPU. Call before jax is imported."""
    os.environ.update(COMPILER_ONLY)


def set_up_logging() -> None:
    """Our log from INFO on, warnings of other packages. Call before importing them."""
    logging.basicConfig(
        format=FORMAT,
        datefmt="%H:%M:%S",
        level=logging.WARNING,
    )
    logger.setLevel(logging.INFO)
    # A broken checkpoint is reported in one line; asyncio would log a page a leaf.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logging.getLogger("absl").addFilter(_not_raised_anyway)
    # Hides transformers' advice to install torch: only tokenizers are used.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def name_process(index: int) -> None:
    """Lines of the log begin with the process, where there are several."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter(f"[{index}] {FORMAT}", "%H:%M:%S"))


def _not_raised_anyway(record: logging.LogRecord) -> bool:
    """False for errors that threads of a save log at length and the save then
    raises."""
    return "_SignalingThread.run() raised" not in record.getMessage()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
