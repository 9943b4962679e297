"""Losses: the clipped GRPO objective with its KL, log-probabilities without full
logits, supervised fine-tuning, and the contrastive loss of the encoder stage.

Sums and counts are returned apart, so that micro-batches add up exactly.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class TokenScores(NamedTuple):
    """Per completion token, float32."""

    logprobs: Float[Array, "B G C"]
    entropy: Float[Array, "B G C"]  # nats


def token_logprobs(
    hidden: Float[Array, "B G C D"],
    targets: Int[Array, "B G C"],
    head: Float[Array, "V D"],
    *,
    temperature: float = 1.0,
    chunk: int,
) -> TokenScores:
    """Log-probability of each target and the entropy of its distribution.

    Goes through C in chunks and computes each chunk's logits again in the backward
    pass, so that no [tokens, V] array of the whole batch ever exists: one sequence of
    2,304 tokens over 262,144 words would be 2.4 GB in float32.
    """
    B, G, C, D = hidden.shape
    chunk = min(chunk, C)
    count = -(-C // chunk)
    pad = count * chunk - C
    hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, pad), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, 0), (0, pad)))
    by_chunk = lambda a: jnp.moveaxis(a.reshape(B, G, count, chunk, *a.shape[3:]), 2, 0)
    weights = head.astype(hidden.dtype)
    chunks = (by_chunk(hidden), by_chunk(targets))
    out: Any = _chunked_scores(*chunks, weights, temperature)
    join = lambda a: jnp.moveaxis(a, 0, 2).reshape(B, G, -1)[:, :, :C]
    return TokenScores(*(join(a) for a in out))


def _logits(
    hidden: Float[Array, "*b D"], weights: Float[Array, "V D"], temperature: float
) -> Float[Array, "*b V"]:
    logits = jnp.einsum(
        "...D,VD->...V", hidden, weights, preferred_element_type=jnp.float32
    )
    return logits / temperature


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _chunked_scores(
    hidden: Float[Array, "N B G c D"],
    targets: Int[Array, "N B G c"],
    weights: Float[Array, "V D"],
    temperature: float,
) -> TokenScores:
    """Scores of N chunks, one after the other.

    Of a chunk with logits z, p = softmax(z) and entropy H:
    d log p_y / dz = onehot(y) - p and dH / dz = -p (log p + H).
    """
    return _chunked_forward(hidden, targets, weights, temperature)[0]


def _chunked_forward(
    hidden: Array, targets: Array, weights: Array, temperature: float
) -> tuple[TokenScores, tuple]:
    def one(xs: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        h, y = xs
        logits = _logits(h, weights, temperature)
        total = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
        mean = jnp.sum(jnp.exp(logits - total[..., None]) * logits, axis=-1)
        return chosen - total, total - mean, total

    logprobs, entropy, total = jax.lax.map(one, (hidden, targets))
    kept = (hidden, targets, weights, total, entropy)
    return TokenScores(logprobs, entropy), kept


def _chunked_backward(
    temperature: float, kept: tuple, gradients: TokenScores
) -> tuple[Array, None, Array]:
    hidden, targets, weights, total, entropy = kept
    words = jnp.arange(weights.shape[0])[None, None, None]

    def one(summed: Array, xs: tuple) -> tuple[Array, Array]:
        h, y, total, entropy, by_logprob, by_entropy = xs
        logprobs = _logits(h, weights, temperature) - total[..., None]
        probs = jnp.exp(logprobs)
        by_logit = by_logprob[..., None] * ((words == y[..., None]) - probs)
        by_logit -= by_entropy[..., None] * probs * (logprobs + entropy[..., None])
        by_logit = (by_logit / temperature).astype(h.dtype)
        by_weight = jnp.einsum(
            "...V,...D->VD", by_logit, h, preferred_element_type=jnp.float32
        )
        return summed + by_weight, jnp.einsum("...V,VD->...D", by_logit, weights)

    # summed in float32 over the chunks, rounded once
    start = jnp.zeros(weights.shape, jnp.float32)
    chunks = (hidden, targets, total, entropy, *gradients)
    summed, by_hidden = jax.lax.scan(one, start, chunks)
    return by_hidden, None, summed.astype(weights.dtype)


_chunked_scores.defvjp(_chunked_forward, _chunked_backward)


def k3(
    logprobs: Float[Array, "*b"], ref_logprobs: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    """The k3 estimate of KL(policy || reference) a token, >= 0.

    exp(d) - d - 1 with d = log ref - log policy; http://joschu.net/blog/kl-approx.html.
    """
    d = jnp.clip(ref_logprobs - logprobs, -20.0, 20.0)  # beyond: no estimate
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
    scores: TokenScores,
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
    denominator is the stop-gradient of the current log-probabilities; the sampler's are
    compared with it as an alarm. Masked tokens add nothing, neither to a sum nor to a
    gradient, whatever numbers they carry.
    """
    # Masked at both ends: a NaN between would pass a zero in the backward pass.
    logprobs = jnp.where(mask, scores.logprobs, 0.0)
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
        entropy=total(scores.entropy),
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
