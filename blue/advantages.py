"""Rewards [B, G] -> advantages, relative to the group.

GRPO, https://arxiv.org/abs/2402.03300, section 4.1.2.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

STD_FLOOR = 1e-5  # of the group's standard deviation
ZERO_STD = 1e-3  # below this a group counts as without variance


def group_advantages(rewards: Float[Array, "B G"]) -> Float[Array, "B G"]:
    """(reward - group mean) / max(group std, 1e-5), population std; no sign limits.

    Adding a constant to a group's rewards, or scaling them, changes nothing.
    """
    mean = rewards.mean(axis=1, keepdims=True)
    return (rewards - mean) / jnp.maximum(rewards.std(axis=1, keepdims=True), STD_FLOOR)


def zero_variance_fraction(rewards: Float[Array, "B G"]) -> Float[Array, ""]:
    """Share of groups that teach nothing, in [0, 1]: their std is below 1e-3."""
    return jnp.mean(rewards.std(axis=1) < ZERO_STD)
