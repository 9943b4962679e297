"""config -> the judge of the multiple choice."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blue.hub.model import Model
from blue.rewards import judges
from blue.runtime.shapes import Shapes
from blue.sources.role import precision_of
from blue.sources.text import templates_of


def choice_shapes(config: ConfigDict, batch_size: int) -> Shapes:
    """Questions a call, their tokens, options of each, tokens of an option."""
    choice = config.rewards.choice
    return Shapes(
        batch_size,
        choice.max_prompt_tokens,
        choice.num_options,
        choice.max_option_tokens,
    )


def questions_at_a_time(config: ConfigDict) -> int:
    """Of a training step: about G profiles of each user of a micro-batch, and none."""
    return (config.microbatch_size or config.batch_size) * (config.group_size + 1)


def make_choice(
    config: ConfigDict, reader: Model, mesh: Mesh, *, batch_size: int
) -> Callable[..., np.ndarray]:
    """(reader params, profiles, options of each) -> scores [n, options]."""
    return judges.make_choice_scorer(
        reader.cfg,
        reader.tokenizer,
        templates_of(config),
        mesh,
        scoring=config.rewards.choice.scoring,
        shapes=choice_shapes(config, batch_size),
        precision=precision_of(config),
    )


def make_choice_scorer(
    config: ConfigDict, reader: Model, mesh: Mesh
) -> Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]:
    """(profiles, options of each) -> scores [n, options], of this reader."""
    score = make_choice(config, reader, mesh, batch_size=config.evaluate.batch_size)
    return functools.partial(score, reader.params)
