"""config -> the judge of the multiple choice."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blue.hub.model import Model
from blue.rewards import judges
from blue.sources.text import templates_of


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
        shapes=judges.ChoiceShapes(
            batch_size=batch_size,
            num_options=config.rewards.choice.num_options,
            prompt_tokens=config.judge.max_prompt_tokens,
            option_tokens=config.judge.max_option_tokens,
        ),
        params_dtype=config.dtype.params,
        dtype=config.dtype.compute,
    )


def make_choice_scorer(
    config: ConfigDict, model: Model, mesh: Mesh
) -> Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]:
    """(profiles, options of each) -> scores [n, options], with this model as judge."""
    judge = make_judge(config, model, mesh, batch_size=config.evaluate.batch_size)
    return functools.partial(judge, model.params)
