"""A small config and a chip to plan for."""

from blue.runtime import chips
from configs import base

V6E = chips.BY_NAME["v6e"]
GIB = 2**30


def tiny(**fields):
    """The tiny config with a judge by letters, and these fields."""
    config = base.get_config("tiny")
    config.judge.scoring = "letters"
    config.update(fields)
    return config
