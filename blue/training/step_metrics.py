"""Metrics of one step: rewards, rollouts, speed.

The reward curve alone does not show a degenerate policy. Length, finished share,
repeated words, entropy and KL do.
"""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Bool, Float

from blue.runtime.chips import BY_KIND


def group_stds(values: Float[np.ndarray, "B G"]) -> Float[np.ndarray, " b"]:
    """Population standard deviation inside each group that has two finite values."""
    finite = [row[np.isfinite(row)] for row in values]
    return np.array([row.std() for row in finite if len(row) > 1], values.dtype)


def finite_mean(values: Float[np.ndarray, "*b"]) -> float:
    """Mean of what is finite; NaN where nothing is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan


def within_group_correlation(
    a: Float[np.ndarray, "B G"], b: Float[np.ndarray, "B G"]
) -> float:
    """Pearson correlation of two rewards after subtracting each group's mean; 0 if one
    has no variance within groups. Over the profiles that have both."""
    both = np.isfinite(a) & np.isfinite(b)
    count = np.maximum(both.sum(axis=1, keepdims=True), 1)
    a, b = (np.where(both, x, 0) for x in (a, b))
    a, b = (np.where(both, x - x.sum(1, keepdims=True) / count, 0) for x in (a, b))
    norm = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / norm) if norm > 1e-9 else 0.0


def reward_metrics(
    total: Float[np.ndarray, "B G"],
    parts: Mapping[str, Float[np.ndarray, "B G"]],
    *,
    zero_std: float,
) -> dict[str, float]:
    """`reward/*` of one step; `<name>_std` is the mean of the groups' deviations.

    Profiles that could not be scored are left out; `reward/invalid` counts them.
    """
    out = {}
    for name, values in {"total": total, **parts}.items():
        out[f"reward/{name}"] = finite_mean(values)
        out[f"reward/{name}_std"] = finite_mean(group_stds(values))
    out["reward/frac_zero_std"] = finite_mean(1.0 * (group_stds(total) < zero_std))
    out["reward/invalid"] = float(np.sum(~np.isfinite(total)))
    if "embedding" in parts and "choice" in parts:
        correlation = within_group_correlation(parts["embedding"], parts["choice"])
        out["reward/corr_embedding_choice"] = correlation
    return out


def rollout_metrics(
    mask: Bool[np.ndarray, "B G C"], finished: Bool[np.ndarray, "B G"]
) -> dict[str, float]:
    """`rollout/*`: lengths in tokens; shares of unfinished and of empty completions.

    The end token counts as a token; a completion is empty when nothing comes before it.
    """
    lengths = mask.sum(axis=-1)
    return {
        "rollout/length_mean": float(lengths.mean()),
        "rollout/length_max": float(lengths.max()),
        "rollout/truncated": float(1.0 - finished.mean()),
        "rollout/empty": float(np.mean(lengths - finished <= 0)),
    }


def speed_metrics(
    *, tokens: int, step_s: float, step_flops: float, compiles: int
) -> dict[str, float]:
    """`speed/*`; values that the platform does not report are NaN (null in
    metrics.jsonl).

    tokens: sampled in the step. step_flops: of the whole step over all devices.
    """
    device = jax.local_devices()[0]
    chip = BY_KIND.get(device.device_kind)
    peak = chip.flops if chip else np.nan
    memory = device.memory_stats() or {}
    used = memory.get("peak_bytes_in_use")
    return {
        "speed/tokens_per_s": tokens / step_s,
        "speed/mfu": step_flops / step_s / peak / jax.device_count(),
        "speed/hbm_gb": (used or np.nan) / 2**30,
        "speed/compiles": compiles,
    }
