"""Alarms: edges, hysteresis, spikes, the checks of the first step."""

import math

import pytest

from blue.training import alarms
from configs import base

SECTION = base.get_config().alarms.to_dict()
LIMITS = alarms.limits(SECTION, exact=True, completions=100)


def run(key, values, limits=LIMITS, lines=()):
    """The lines that a run with these values of one metric leaves, alarms included."""
    lines = list(lines)
    told = []
    for value in values:
        most = limits.window + limits.patience  # lines that a run looks back at
        found = alarms.step_alarms(lines[-most:], {key: value}, limits)
        told += [(len(lines), a.name, a.on) for a in found.values() if a.changed]
        lines.append({key: value} | {f"alarm/{n}": int(a.on) for n, a in found.items()})
    return lines, told


def test_every_rule_names_a_limit_and_a_metric_that_exists():
    for rule in alarms.RULES.values():
        assert rule.limit in alarms.Limits._fields
        assert not rule.floor or rule.floor in alarms.Limits._fields


def test_a_lasting_alarm_is_told_once_and_ends_clearly_below_its_limit():
    collapse = [0.5, 0.95, 0.95, 0.5] + [0.95] * 9 + [0.85, 0.8, 0.7, 0.95, 0.95]
    lines, told = run("reward/frac_zero_std", collapse)
    # five lines in a row from 4 to 8; .85 and .8 are not yet well; .7 is below .72
    assert told == [(8, "reward_collapse", True), (15, "reward_collapse", False)]
    marks = [line["alarm/reward_collapse"] for line in lines]
    assert marks == [0] * 8 + [1] * 7 + [0] * 3


def test_entropy_alarms_below():
    _, told = run("policy/entropy", [1.0] + [0.04] * 5 + [0.055, 0.07])
    assert told == [(5, "entropy_collapse", True), (7, "entropy_collapse", False)]


def test_a_spike_is_measured_by_the_median_of_a_full_enough_window():
    steady = [0.25, 0.3] * 6
    _, told = run("optim/grad_norm", [9.0, *steady, 2.0, 9.0, 9.0, 0.3])
    assert told == [(14, "grad_spike", True), (16, "grad_spike", False)]
    _, told = run("optim/grad_norm", [0.3] * 7 + [9.0])  # too few before it
    assert not told
    _, told = run("policy/kl", [1e-6] * 20 + [1e-3] * 3)  # far below the floor
    assert not told
    _, told = run("policy/kl", [0.02] * 20 + [0.19, 0.3])
    assert told == [(21, "kl_spike", True)]


def test_a_spike_that_stays_becomes_the_new_normal():
    lines, told = run("optim/grad_norm", [0.3] * 10 + [9.0] * 60)
    assert [on for _, _, on in told] == [True, False] and told[0][0] == 10
    assert not lines[-1]["alarm/grad_spike"]


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_missing_value_leaves_an_alarm_as_it_was(missing):
    _, told = run("policy/sampler_gap_max", [1e-5, missing, 0.5, missing, 1e-5])
    assert told == [(2, "sampler_gap_max", True), (4, "sampler_gap_max", False)]


def test_the_lines_before_are_all_that_is_remembered():
    """Resumed from any line: the same alarms as without a break."""
    values = [0.5] * 3 + [0.95] * 8 + [0.8] * 3 + [0.1, 0.95]
    whole, _ = run("reward/frac_zero_std", values)
    for cut in range(len(values)):
        again, _ = run("reward/frac_zero_std", values[cut:], lines=whole[:cut])
        assert again == whole


def test_a_short_window_does_not_shorten_patience():
    short = LIMITS._replace(window=1)
    _, told = run("rollout/truncated", [1.0] * 6, short)
    assert told == [(4, "truncated", True)]
    _, told = run("optim/grad_norm", [0.1, 0.2, 5.0], short)
    assert told == [(2, "grad_spike", True)]


def test_shares_of_profiles_become_counts():
    _, told = run("reward/invalid", [11.0] * 5 + [10.0, 8.0])
    assert told == [(4, "invalid", True), (6, "invalid", False)]


GOOD = {
    "policy/clip_fraction": 0.0,
    "policy/sampler_gap_mean": 1e-7,
    "policy/sampler_gap_max": 1e-5,
    "policy/kl": 1e-9,
}


def test_the_first_step_of_a_good_run_has_no_fault():
    assert alarms.first_step_faults(GOOD, LIMITS, resumed=False) == []
    skipped = dict.fromkeys(GOOD, math.nan)  # the update was skipped: others judge
    assert alarms.first_step_faults(skipped, LIMITS, resumed=False) == []


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("policy/clip_fraction", 0.1, "is 0.1, must be at most 0: the ratio"),
        ("policy/sampler_gap_mean", 0.3, "is 0.3, must be at most 0.001: sampler and"),
        ("policy/sampler_gap_max", 0.3, "is 0.3, must be at most 0.02: sampler and"),
        ("policy/kl", 0.01, "is 0.01, must be at most 0.0001: before the first"),
    ],
)
def test_a_fault_of_the_first_step_says_which_and_by_how_much(key, value, words):
    (line,) = alarms.first_step_faults(GOOD | {key: value}, LIMITS, resumed=False)
    assert line.startswith(f"{key} {words}")
    resumed = alarms.first_step_faults(GOOD | {key: value}, LIMITS, resumed=True)
    assert resumed == ([] if key == "policy/kl" else [line])


def test_coarse_products_are_given_more_room():
    wide = alarms.limits(SECTION, exact=False, completions=100)
    seen = GOOD | {"policy/sampler_gap_mean": 0.02, "policy/kl": 1e-3}
    assert len(alarms.first_step_faults(seen, LIMITS, resumed=False)) == 2
    assert alarms.first_step_faults(seen, wide, resumed=False) == []
    assert wide.kl_floor == LIMITS.kl_floor
