"""The command: flags, stages, exit codes.

    python -m blue.main --config=configs/NAME.py[:tiny] --workdir=DIR [--config.F=V ...]

Exit codes: 0 done; 2 the user's mistake, told in one line; 70 non-finite numbers; 71 a
hang; 75 preempted, to be started again; 130 interrupted. Anything else keeps its
traceback.
"""

import importlib
import json
import logging
import os
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from blue import settings, usage, xla_flags
from blue.errors import NonFinite, Preempted, UserError

log = logging.getLogger("blue")

STAGES = {  # name in config.stages -> its module, and what it does
    "encoder": ("train_encoder", "fine-tune the encoder, supervised contrastive"),
    "warm_start": ("warm_start", "fine-tune the profiler on rule-made profiles"),
    "profiler": ("train_profiler", "train the profiler with GRPO"),
    "write_profiles": ("write_profiles", "write profiles of all users of the log"),
    "evaluate": ("evaluate", "compare profiles with baselines on test users"),
    "plan": ("plan", "compile every program for TPUs that are not there; memory, cost"),
}
# The TPU compiler without a TPU; read by jax and libtpu when they are loaded.
COMPILER_ONLY = {
    "TPU_SKIP_MDS_QUERY": "1",
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def main(argv: Sequence[str]) -> int:
    """Run what `argv` asks for; the exit code."""
    if {"--help", "-h", "--helpfull", "--helpshort"} & set(argv[1:]):
        sys.stdout.write(usage.text({name: does for name, (_, does) in STAGES.items()}))
        return 0
    set_up_logging()
    try:
        run(argv)
    except UserError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    except NonFinite as error:
        sys.stderr.write(f"stopped: {error}\n")
        return 70
    except Preempted as error:
        sys.stderr.write(f"preempted: {error}\n")
        return 75
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0


def run(argv: Sequence[str]) -> None:
    """The stages of the config, one after the other; finished ones skip themselves."""
    config, workdir = settings.load(argv)
    stages = settings.check(config, list(STAGES))
    if stages == ["plan"]:
        compiler_only()
        config.platform, config.num_devices, config.num_processes = "", 0, 0
    if config.xla_flags:  # before jax starts
        xla_flags.set_for(xla_flags.platform_of(os.environ), os.environ)
    # these bring jax, which a typo need not wait for
    from blue import (
        compile_cache,
        disk,
        preemption,
        record,
        resume,
        run_lock,
        startup,
        watchdog,
    )

    startup.check(
        dict(settings.leaves(ConfigDict(record.redacted(config)))),
        platform=config.platform,
        num_devices=config.num_devices,
        num_processes=config.num_processes,
    )
    compile_cache.use(config.compile_cache)
    limits = config.watchdog.to_dict()
    with (
        disk.told(workdir),
        run_lock.hold(workdir),
        watchdog.watching(workdir, limits, process=startup.process()),
        preemption.listening(config.preemption_grace_s),
    ):
        resume.open_stages(config.resume, workdir, stages)
        record.save(config, workdir)
        for name, value in record.redacted(config).items():
            log.info("%s: %s", name, json.dumps(value))
        for stage in stages:
            preemption.leave_if_requested(f"before stage {stage}")
            log.info("stage %s", stage)
            watchdog.beat("load", stage=stage)
            module, _ = STAGES[stage]
            importlib.import_module(f"blue.{module}").run(config, workdir)


def compiler_only() -> None:
    """Makes jax use the TPU compiler without a TPU; before its first import."""
    os.environ.update(COMPILER_ONLY)


def set_up_logging() -> None:
    """Ours from INFO on, others' warnings; before their first import."""
    logging.basicConfig(
        format="%(asctime)s %(levelname).1s %(message)s",
        datefmt="%H:%M:%S",
        level=logging.WARNING,
    )
    log.setLevel(logging.INFO)
    # A broken checkpoint is told by us; asyncio would add a page a leaf.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logging.getLogger("absl").addFilter(_not_raised_anyway)
    # Only its tokenizers are used, it need not miss torch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _not_raised_anyway(record: logging.LogRecord) -> bool:
    """Threads of a save log the very error, with pages, that the save then raises."""
    return "_SignalingThread.run() raised" not in record.getMessage()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
