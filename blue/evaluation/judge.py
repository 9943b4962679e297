"""How good the judge of the multiple choice is."""

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

    `profiles` are made by rule from each user's recent history, so this measures the
    judge alone. Ties count as wrong. At chance, no result may rest on the judge.
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
        # evaluation.json, which other programs read, calls the judge a reader
        "note": "reader at chance: not a result" if low <= chance else "",
    }
