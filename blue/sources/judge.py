"""config -> the judge of the multiple choice."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blue.hub.model import Model
from blue.rewards import judges
from blue.sources.text import templates_of


def make_choice(
    config: ConfigDict, reader: Model, mesh: Mesh, *, batch_size: int
) -> Callable[..., np.ndarray]:
    """(reader params, profiles, options of each) -> scores [n, options]."""
    choice = config.rewards.choice
    return judges.make_choice_scorer(
        reader.cfg,
        reader.tokenizer,
        templates_of(config),
        mesh,
        scoring=choice.scoring,
        shapes=judges.ChoiceShapes(
            batch_size=batch_size,
            num_options=choice.num_options,
            prompt_tokens=choice.max_prompt_tokens,
            option_tokens=choice.max_option_tokens,
        ),
        params_dtype=config.dtype.params,
        dtype=config.dtype.compute,
    )


def make_choice_scorer(
    config: ConfigDict, reader: Model, mesh: Mesh
) -> Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]:
    """(profiles, options of each) -> scores [n, options], of this reader."""
    score = make_choice(config, reader, mesh, batch_size=config.evaluate.batch_size)
    return functools.partial(score, reader.params)
