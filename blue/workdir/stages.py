"""The table of stages.

It is in this room because lower rooms than the stages' read it, too. The check of a
config does, the search for a trained model, and the note of a checkpoint. It imports
nothing, so that --help does not load jax.

How to add a stage: blue/stages/README.md.
"""

from typing import NamedTuple


class Stage(NamedTuple):
    """A stage of a run; `blue/stages/<module>.py` holds its `run(config, workdir)`."""

    module: str
    does: str  # a clause for --help
    trains: str = ""  # the role whose model it trains: profiler, encoder, or none
    sizes: tuple[str, ...] = ()  # fields that may not change between its steps
    only_compiles: bool = False  # for devices that this machine lacks: it runs alone
    needs_devices: bool = True  # config.platform and num_devices are checked


STAGES = {  # name in config.stages -> the stage
    "prepare": Stage(
        "prepare",
        "prepare the data alone; print what was read, left out and kept",
        needs_devices=False,
    ),
    "encoder": Stage(
        "train_encoder",
        "fine-tune the encoder, supervised contrastive",
        trains="encoder",
        sizes=("train_encoder.batch_size", "train_encoder.queries"),
    ),
    "warm_start": Stage(
        "warm_start",
        "fine-tune the profiler on rule-made profiles",
        trains="profiler",
        sizes=(
            *("warm_start.batch_size", "warm_start.targets", "warm_start.tasks"),
            "warm_start.choice_batch_size",
        ),
    ),
    "profiler": Stage(
        "train_profiler",
        "train the profiler with GRPO",
        trains="profiler",
        sizes=("batch_size", "microbatch_size", "group_size"),
    ),
    "write_profiles": Stage("write_profiles", "write profiles of all users of the log"),
    "evaluate": Stage("evaluate", "compare profiles with baselines on test users"),
    "plan": Stage(
        "plan",
        "compile every program for TPUs that are not there; memory, cost",
        only_compiles=True,
        needs_devices=False,
    ),
}


def trained_by(role: str) -> list[str]:
    """Names of the stages that train the model of `role`, profiler or encoder."""
    return [name for name, stage in STAGES.items() if stage.trains == role]
