"""Metrics of a step: over what could be scored."""

import math

import numpy as np
import pytest

from blue.training.step_metrics import (
    reward_metrics,
    rollout_metrics,
    within_group_correlation,
)


def test_reward_metrics_leave_out_what_could_not_be_scored():
    nan = np.nan
    total = np.array([[1, 3, nan], [2, 2, 2], [nan, 5, nan]], np.float32)
    choice = np.array([[0, 1, nan], [1, 1, 1], [0, 0, nan]], np.float32)
    found = reward_metrics(total, {"choice": choice}, zero_std=1e-3)
    assert found["reward/total"] == pytest.approx(15 / 6)
    assert found["reward/total_std"] == pytest.approx(0.5)  # of 1 and 0: two groups
    assert found["reward/choice"] == pytest.approx(4 / 7)
    assert found["reward/frac_zero_std"] == 0.5
    assert found["reward/invalid"] == 3


def test_a_step_without_any_reward_is_null_not_an_error():
    none = np.full((2, 3), np.nan, np.float32)
    parts = {"embedding": none, "choice": np.ones((2, 3), np.float32)}
    found = reward_metrics(none, parts, zero_std=1e-3)
    assert math.isnan(found["reward/total"]) and found["reward/invalid"] == 6
    assert math.isnan(found["reward/frac_zero_std"])
    assert found["reward/choice"] == 1 and found["reward/corr_embedding_choice"] == 0


def test_correlation_is_inside_groups_and_over_pairs():
    a = np.array([[0, 1, 2], [10, 11, np.nan]], np.float32)
    b = np.array([[5, 6, 7], [1, 2, 9]], np.float32)
    assert within_group_correlation(a, b) == pytest.approx(1)
    assert within_group_correlation(a, -b) == pytest.approx(-1)


def test_rollouts_that_are_empty_or_at_the_limit():
    mask = np.arange(4) < np.array([[1, 1], [4, 4]])[..., None]
    finished = np.array([[True, False], [True, False]])
    found = rollout_metrics(mask, finished)
    # an end token first is empty; one word without an end is not
    assert found["rollout/empty"] == 0.25 and found["rollout/truncated"] == 0.5
    assert found["rollout/length_mean"] == 2.5 and found["rollout/length_max"] == 4
