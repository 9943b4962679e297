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
    judge, num_options = config.judge, config.rewards.choice.num_options
    return Shapes(
        batch_size, judge.max_prompt_tokens, num_options, judge.max_option_tokens
    )


def questions_at_a_time(config: ConfigDict) -> int:
    """Questions in a call of a training step: G profiles and an empty one for each user
    of a micro-batch."""
    return (config.microbatch_size or config.batch_size) * (config.group_size + 1)


def make_judge(
    config: ConfigDict, model: Model, mesh: Mesh, *, batch_size: int
) -> judges.Judge:
    """(judge's params, profiles, options of each) -> scores [n, options].

    model: of the judge's architecture and tokenizer; batch_size: rows a call.
    """
    return judges.make_judge(
        model.cfg,
        model.tokenizer,
        templates_of(config),
        mesh,
        scoring=config.judge.scoring,
        shapes=choice_shapes(config, batch_size),
        precision=precision_of(config),
    )


def make_choice_scorer(
    config: ConfigDict, model: Model, mesh: Mesh
) -> Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]:
    """(profiles, options of each) -> scores [n, options], with this model as judge."""
    judge = make_judge(config, model, mesh, batch_size=config.evaluate.batch_size)
    return functools.partial(judge, model.params)
