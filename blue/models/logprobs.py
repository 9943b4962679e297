"""Log-probabilities and entropies of tokens, without full logits."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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

    C is processed in chunks, and each chunk's logits are recomputed in the backward
    pass. So no [tokens, V] array of the whole batch exists: a sequence of 2,304 tokens
    over 262,144 words would take 2.4 GB in float32.
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
