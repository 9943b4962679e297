"""A stage's writer, of ten steps."""

from blue.workdir.writer import Writer


def open_writer(workdir, *, stage="profiler", first_step=0, tensorboard=False):
    return Writer(
        workdir,
        stage=stage,
        first_step=first_step,
        num_steps=10,
        every=3,
        tensorboard=tensorboard,
        hparams={"lr": 1e-3, "rewards": {"choice": {"weight": 1.0}}, "stages": ("a",)},
    )
