"""The accuracy of the judge of the multiple choice."""

from collections.abc import Callable
from typing import Any

import numpy as np

from blue.evaluation import metrics


def judge_accuracy(
    ask: Callable[[list[str], list[list[str]]], np.ndarray],
    *,
    profiles: list[str],
    options: list[list[str]],
) -> dict[str, Any]:
    """How often the judge picks option 0, the next item, with its 95% interval.

    `profiles` are made by rule from each user's recent history, so this measures only
    the judge. Ties count as wrong. Near chance, rewards of the judge mean nothing.
    ask: (profiles, options of each) -> scores [n options].
    """
    scores = ask(profiles, options)
    num_right = int((metrics.rank_of_target(scores) == 1).sum())
    accuracy, low, high = metrics.share_interval(num_right, len(profiles))
    chance = 1 / len(options[0])
    return {
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "chance": chance,
        "n": len(profiles),
        # the file evaluation.json calls the judge a reader since version 0.1.0
        "note": "reader at chance: not a result" if low <= chance else "",
    }
