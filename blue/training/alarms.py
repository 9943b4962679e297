"""Alarms: what the metrics of a step say is wrong with a run.

Pure functions of lines of metrics.jsonl. An alarm depends on nothing but the lines
before it: their values and their own `alarm/<name>`, 0 or 1. A resumed run reads those
lines again. So it raises the same alarms at the same steps as one that never stopped.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

Metrics = Mapping[str, float | int | None]

FEW = 8  # with fewer values a median means little
RELEASE = 0.8  # an alarm ends at this share of its limit, not at the limit itself


class Limits(NamedTuple):
    """From config.alarms, where each is explained; scaled by `limits`."""

    first_kl: float
    gap_mean: float
    gap_max: float
    window: int
    patience: int
    kl_spike: float
    kl_floor: float
    grad_spike: float
    zero_std: float
    invalid: float
    truncated: float
    empty: float
    entropy: float


class Rule(NamedTuple):
    """An alarm: a metric beyond a limit, now or for `patience` lines in a row."""

    metric: str
    limit: str  # a field of Limits
    advice: str
    lasting: bool = False  # only after `patience` lines
    spike: bool = False  # the limit counts medians of the lines before
    floor: str = ""  # a field of Limits that a spike must pass as well
    below: bool = False  # the alarm is for values below the limit


RULES = {
    "reward_collapse": Rule(
        "reward/frac_zero_std",
        "zero_std",
        "the profiles of a user earn alike and teach nothing: read samples.jsonl; "
        "lower lr, raise kl_coef",
        lasting=True,
    ),
    "invalid": Rule(
        "reward/invalid",
        "invalid",
        "these profiles could not be scored and are left out: see the encoder's and "
        "the judge's numbers",
        lasting=True,
    ),
    "truncated": Rule(
        "rollout/truncated",
        "truncated",
        "profiles are cut off: raise max_completion_tokens or "
        "rewards.unfinished.weight",
        lasting=True,
    ),
    "empty": Rule(
        "rollout/empty",
        "empty",
        "profiles have no text: read samples.jsonl; lower lr, raise kl_coef",
        lasting=True,
    ),
    "entropy_collapse": Rule(
        "policy/entropy",
        "entropy",
        "the profiler writes one profile only: lower lr, raise kl_coef or "
        "sampling_temperature",
        lasting=True,
        below=True,
    ),
    "sampler_gap": Rule(
        "policy/sampler_gap_mean",
        "gap_mean",
        "sampler and trainer disagree: what is learnt is not what was written",
    ),
    "sampler_gap_max": Rule(
        "policy/sampler_gap_max",
        "gap_max",
        "sampler and trainer disagree on a token: what is learnt is not what was "
        "written",
    ),
    "kl_spike": Rule(
        "policy/kl",
        "kl_spike",
        "the profiler jumped away from where it started: lower lr, raise kl_coef",
        spike=True,
        floor="kl_floor",
    ),
    "grad_spike": Rule(
        "optim/grad_norm",
        "grad_spike",
        "an unusual batch or a diverging run: the update is clipped to grad_clip; "
        "lower lr if it lasts",
        spike=True,
    ),
}


class Alarm(NamedTuple):
    """One alarm at one step."""

    name: str
    on: bool
    changed: bool  # since the line before
    text: str  # metric, value, limit; what to do


def limits(
    section: Mapping[str, float | int], *, exact: bool, completions: int
) -> Limits:
    """The limits of config.alarms, scaled for coarser products than exact float32 and
    for the number of completions a step."""
    fields = {name: section[name] for name in Limits._fields}
    if not exact:
        for name in ("first_kl", "gap_mean", "gap_max"):
            fields[name] *= section["coarse"]
    fields["invalid"] *= completions
    return Limits(**fields)  # pyright: ignore[reportArgumentType]


def step_alarms(
    before: Sequence[Metrics], now: Metrics, limits: Limits
) -> dict[str, Alarm]:
    """The alarms at a line, given the lines before it (the newest last).

    Alarms whose metric the line lacks are omitted. A value that is not finite leaves
    the alarm unchanged.
    """
    alarms = {}
    for name, rule in RULES.items():
        if rule.metric in now:
            was = bool(before and before[-1].get(f"alarm/{name}"))
            earlier = _finite(before, rule.metric)
            on, text = _judge(rule, earlier, now[rule.metric], was, limits)
            alarms[name] = Alarm(name, on, on != was, text)
    return alarms


def _judge(
    rule: Rule, earlier: list[float], value: float | None, was: bool, limits: Limits
) -> tuple[bool, str]:
    """Whether the alarm is on, and its text."""
    if value is None or not math.isfinite(value):
        return was, f"{rule.metric} is not finite"
    limit = getattr(limits, rule.limit)
    if rule.spike:
        window = earlier[-limits.window :]
        usual = median(window) if len(window) >= min(FEW, limits.window) else 0.0
        limit = limit * usual or math.inf
        limit = max(limit, getattr(limits, rule.floor) if rule.floor else 0.0)
    sign = -1.0 if rule.below else 1.0
    beyond = lambda x: sign * x > sign * limit
    last = [*earlier, value][-limits.patience :] if rule.lasting else [value]
    full = len(last) == (limits.patience if rule.lasting else 1)
    if was:
        on = sign * value > sign * limit * RELEASE**sign
    else:
        on = full and all(map(beyond, last))
    relation = "below" if rule.below else "above"
    share = f" ({limits[Limits._fields.index(rule.limit)]:g} medians)"
    return on, (
        f"{rule.metric} = {value:.4g} is {relation if on else 'no longer ' + relation} "
        f"{limit:.4g}{share if rule.spike else ''}"
        + (f" for {len(last)} lines" if on and rule.lasting and not was else "")
        + (f": {rule.advice}" if on else "")
    )


def _finite(lines: Sequence[Metrics], key: str) -> list[float]:
    found = (line.get(key) for line in lines)
    return [x for x in found if x is not None and math.isfinite(x)]


def first_step_faults(now: Metrics, limits: Limits, *, resumed: bool) -> list[str]:
    """Faults that the first step after a start reveals; empty if there are none.

    One update a batch makes the ratio 1, so nothing is clipped. Before the first update
    the profiler is its reference, so KL is 0. Sampler and trainer score the same tokens
    alike. Values that are not finite are skipped: another check stops the run for them.
    """
    checks = [
        (
            "policy/clip_fraction",
            0.0,
            "the ratio of the one update of a batch must be 1",
        ),
        (
            "policy/sampler_gap_mean",
            limits.gap_mean,
            "sampler and trainer disagree on log-probabilities (nats a token, limit "
            "alarms.gap_mean); top_k must be 0 and top_p 1, and attention, positions "
            "and temperature the same in both",
        ),
        (
            "policy/sampler_gap_max",
            limits.gap_max,
            "sampler and trainer disagree on the log-probability of a token (nats, "
            "limit alarms.gap_max); top_k must be 0 and top_p 1",
        ),
    ]
    if not resumed:
        checks.append(
            (
                "policy/kl",
                limits.first_kl,
                "before the first update the profiler must equal its reference (nats a "
                "token, limit alarms.first_kl)",
            )
        )
    return [
        f"{key} is {now[key]:.4g}, must be at most {limit:.4g}: {meaning}"
        for key, limit, meaning in checks
        if math.isfinite(now[key] or 0.0) and (now[key] or 0.0) > limit
    ]
