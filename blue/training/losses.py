"""Losses: the clipped GRPO objective with its KL, log-probabilities without full
logits, supervised fine-tuning, and the contrastive loss of the encoder stage.

Sums and counts are returned separately, so that micro-batches add up exactly.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def k3(
    logprobs: Float[Array, "*b"], ref_logprobs: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    """The k3 estimate of KL(policy || reference) a token, >= 0.

    exp(d) - d - 1 with d = log ref - log policy; http://joschu.net/blog/kl-approx.html.
    """
    d = jnp.clip(ref_logprobs - logprobs, -20.0, 20.0)  # the estimate is useless beyond
    return jnp.exp(d) - d - 1.0


class GRPOSums(NamedTuple):
    """Sums over completion tokens; divide by the count of the whole batch once."""

    loss: Float[Array, ""]
    kl: Float[Array, ""]
    entropy: Float[Array, ""]
    clipped: Float[Array, ""]
    gap: Float[Array, ""]  # |sampler - trainer| log-probability
    gap_max: Float[Array, ""]


def grpo_loss(
    logprobs: Float[Array, "B G C"],
    entropy: Float[Array, "B G C"],
    sampler_logprobs: Float[Array, "B G C"],
    ref_logprobs: Float[Array, "B G C"],
    mask: Bool[Array, "B G C"],
    advantages: Float[Array, "B G"],
    *,
    clip_eps: float,
    kl_coef: float,
) -> GRPOSums:
    """-min(ratio A, clip(ratio, 1 - eps, 1 + eps) A) + kl_coef k3, summed over tokens.

    GRPO, https://arxiv.org/abs/2402.03300, equation 3, with the token mean over the
    whole batch taken by the caller. There is one update a rollout batch, so the ratio's
    denominator is the stop-gradient of the current log-probabilities. The sampler's are
    only compared with it, for an alarm. Masked tokens add nothing to sums and
    gradients, whatever their numbers.
    """
    # Masked before and after: a NaN between would reach the gradient despite a zero.
    logprobs = jnp.where(mask, logprobs, 0.0)
    ratio = jnp.exp(logprobs - jax.lax.stop_gradient(logprobs))
    A = advantages[:, :, None]
    clipped = jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps)
    policy = -jnp.minimum(ratio * A, clipped * A)
    kl = k3(logprobs, ref_logprobs)
    gap = jnp.where(mask, jnp.abs(sampler_logprobs - logprobs), 0.0)
    total = lambda x: jnp.sum(jnp.where(mask, x, 0.0))
    return GRPOSums(
        loss=total(policy + kl_coef * kl),
        kl=total(kl),
        entropy=total(entropy),
        clipped=total((ratio != clipped).astype(jnp.float32)),
        gap=gap.sum(),
        gap_max=gap.max(),
    )


def sft_loss(
    logprobs: Float[Array, "B G C"], mask: Bool[Array, "B G C"]
) -> Float[Array, ""]:
    """Negative log-likelihood summed over target tokens; 0 where there are none."""
    return -jnp.sum(jnp.where(mask, logprobs, 0.0))


def supervised_contrastive(
    users: Float[Array, "B E"],
    items: Float[Array, "B E"],
    item_ids: Int[Array, " B"],
    *,
    similarity_temperature: float,
) -> Float[Array, ""]:
    """Symmetric InfoNCE over the batch; rows with the same item are all positives.

    The mean of user -> item and item -> user; log(B) for identical embeddings. SupCon,
    https://arxiv.org/abs/2004.11362, equation 2 (L_out), in both directions, as BLUE,
    https://arxiv.org/abs/2605.06981, section 2.3, trains the encoder. A batch of one
    item has no negatives: at equal embeddings its gradient is 0.
    """
    scores = users @ items.T / similarity_temperature
    positive = item_ids[:, None] == item_ids[None, :]

    def one_way(scores: Float[Array, "B B"]) -> Array:
        logprobs = jax.nn.log_softmax(scores, axis=1)
        mean = jnp.sum(jnp.where(positive, logprobs, 0.0), 1) / positive.sum(1)
        return -mean.mean()

    return (one_way(scores) + one_way(scores.T)) / 2
