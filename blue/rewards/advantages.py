"""Rewards [B, G] -> advantages, relative to the group.

GRPO, https://arxiv.org/abs/2402.03300, section 4.1.2. The reward NaN belongs to a
completion that could not be scored: it is left out.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

STD_FLOOR = 1e-5  # of the group's standard deviation
ZERO_STD = 1e-3  # below this a group counts as without variance


def teaching(rewards: Float[Array, "B G"]) -> Bool[Array, "B G"]:
    """Which completions take part in the loss: those with a finite reward, in a group
    that has at least two of them. One alone has nothing to be compared with."""
    finite = jnp.isfinite(rewards)
    return finite & (finite.sum(axis=1, keepdims=True) >= 2)


def group_advantages(rewards: Float[Array, "B G"]) -> Float[Array, "B G"]:
    """(reward - group mean) / max(group std, 1e-5), population std; no sign limits.

    Mean and std are over the completions that teach; the others get 0. Adding a
    constant to a group's rewards, or scaling them, changes nothing.
    """
    kept = teaching(rewards)
    values = jnp.where(kept, rewards, 0.0)
    count = jnp.maximum(kept.sum(axis=1, keepdims=True), 1)
    off = jnp.where(kept, values - values.sum(axis=1, keepdims=True) / count, 0.0)
    std = jnp.sqrt((off * off).sum(axis=1, keepdims=True) / count)
    return off / jnp.maximum(std, STD_FLOOR)
