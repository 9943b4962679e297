"""Where a log is cut, by hand."""

from collections import Counter

import numpy as np

from blue.data.cutting import Cutting, cut_log
from tests.helpers.hand_logs import SETTINGS

# --- where a log is cut, by hand


def cut(times, items, policy, **changes):
    stats = Counter()
    cutting = Cutting(*(SETTINGS[name] for name in Cutting._fields))
    cutting = cutting._replace(window_policy=policy, **changes)
    times, items = np.array(times, np.int64), np.array(items, np.int32)
    cuts = cut_log(times, items, stats, cutting)
    more = cutting.targets_per_example > 1
    return [tuple(c) if more else tuple(c)[:2] for c in cuts], dict(stats)


TIMES = [0, 100, 6399, 6400, 9999, 10000]  # the window starts at 6400


def test_exclude_window_has_a_target_for_each_event_of_the_window():
    assert cut(TIMES, range(6), "exclude_window") == ([(5, 3), (4, 3), (3, 3)], {})
    assert cut(TIMES, range(6), "exclude_window", max_train_targets=2) == (
        [(5, 3), (4, 3)],
        {"targets_beyond_max_train_targets": 1},
    )
    assert cut(TIMES, range(6), "exclude_window", window_s=0) == ([(5, 5)], {})


def test_exclude_window_leaves_out_repeats_and_empty_histories():
    cuts = cut(TIMES, [7, 8, 9, 4, 8, 4], "exclude_window")
    assert cuts == ([(5, 3)], {"targets_in_history": 1, "targets_repeated": 1})
    cuts = cut([10, 20, 30], [1, 2, 3], "exclude_window")
    assert cuts == ([], {"targets_without_history": 3})


def test_include_window_is_leave_one_out():
    assert cut(TIMES, range(6), "include_window") == ([(5, 5)], {})
    assert cut([5, 5, 5], [1, 2, 3], "include_window") == ([(2, 2)], {})
    assert cut([5, 6, 7], [1, 2, 1], "include_window") == (
        [],
        {"targets_in_history": 1},
    )


def test_min_history():
    cuts = cut(TIMES, range(6), "exclude_window", min_history=4)
    assert cuts == ([], {"targets_without_history": 3})
    assert cut(TIMES, range(6), "include_window", min_history=5)[0] == [(5, 5)]


def test_rolling_histories_are_strictly_earlier():
    # places 1 to 5 have a history: every fifth third of them, the last one included
    assert cut(TIMES, range(6), "rolling") == ([(5, 5), (4, 4), (2, 2)], {})
    ties = [0, 1, 1, 1, 2, 2]  # a history is earlier by time, not by place
    assert cut(ties, range(6), "rolling") == ([(5, 4), (4, 4), (2, 1)], {})
    cuts = cut([0, 0, 0, 1, 1, 1], range(6), "rolling")
    assert cuts == ([(5, 3), (4, 3), (3, 3)], {})
    cuts, _ = cut(range(101), range(101), "rolling", rolling_targets=10)
    assert cuts == [(place, place) for place in range(100, 0, -10)]
    cuts, _ = cut(range(4), range(4), "rolling", rolling_targets=50)
    assert cuts == [(3, 3), (2, 2), (1, 1)]


def test_rolling_withholds_what_stands_before_the_target():
    cuts, _ = cut(range(31), range(31), "rolling", embargo_items=10, min_history=10)
    assert cuts == [(30, 20), (27, 17), (23, 13)]  # of the places 20 to 30
    # the embargo counts events, whatever their time; the history is the shorter one
    times = [*range(20), *[50] * 11]
    cuts, _ = cut(times, range(31), "rolling", embargo_items=10, min_history=10)
    assert cuts == [(30, 20), (27, 17), (23, 13)]
    cuts, _ = cut(times, range(31), "rolling", embargo_items=2, min_history=10)
    assert cuts[0] == (30, 20)
    assert cut(range(9), range(9), "rolling", min_history=10) == (
        [],
        {"targets_without_history": 1},
    )


def test_more_targets_of_the_same_history():
    two = dict(targets_per_example=3)
    cuts = cut(TIMES, range(6), "exclude_window", **two)[0]
    # later ones first, then the rest of the window
    assert cuts == [(5, 3, (3, 4)), (4, 3, (5, 3)), (3, 3, (4, 5))]
    # neither what the history holds nor the same item twice
    cuts = cut(TIMES, [7, 8, 9, 4, 8, 4], "exclude_window", **two)[0]
    assert cuts == [(5, 3, ())]
    cuts = cut(range(8), [0, 1, 2, 3, 4, 3, 1, 5], "rolling", **two)[0]
    assert cuts == [(7, 7, ()), (3, 3, (4, 7))]
    # under rolling nothing from between the history and the target
    cuts = cut(range(6), range(6), "rolling", embargo_items=2, **two)[0]
    assert cuts == [(5, 3, ()), (4, 2, (5,)), (3, 1, (4, 5))]
    assert cut(TIMES, range(6), "include_window", **two)[0] == [(5, 5, ())]
