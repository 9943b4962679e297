"""How good the judge of the multiple choice is."""

from collections.abc import Callable
from typing import Any

import numpy as np

from blue.evaluation import metrics

# profiles and the options of each -> scores [n options]
Choose = Callable[[list[str], list[list[str]]], np.ndarray]


def judge_accuracy(
    choose: Choose,
    *,
    profiles: list[str],
    options: list[list[str]],
) -> dict[str, Any]:
    """How often the reader picks option 0, the next item, with its 95% interval.

    `profiles` are made by rule from each user's recent history, so this measures the
    reader alone. Ties count as wrong. At chance, no result may rest on the reader.
    """
    scores = choose(profiles, options)
    num_right = int((metrics.rank_of_target(scores) == 1).sum())
    accuracy, low, high = metrics.share_interval(num_right, len(profiles))
    chance = 1 / len(options[0])
    return {
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "chance": chance,
        "n": len(profiles),
        "note": "reader at chance: not a result" if low <= chance else "",
    }
