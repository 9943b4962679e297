"""Rewards: one pure function each over arrays.

A reward is [B, G], larger is better. Its positional parameters are inputs: each is the
name of a function in inputs.py, which computes it. Its keyword-only parameters are the
fields of its config section `rewards.<name>`, beside `weight`.

BLUE, https://arxiv.org/abs/2605.06981: the embedding-space reward, the text-space
next-item reward, and their unweighted sum. `unfinished` and `repetition` are additions
to the paper.

A profile that could not be scored (NaN among its vectors or option scores) has the
reward NaN. It is left out of its group and changes no other reward. An empty profile is
scored like any other. Its embedding reward is near that of no information. A likelihood
judge gives it equal scores, so no option is picked.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MAX_REWARD = 1e15  # above it, squares overflow float32


def user_to_item(
    view: Float[Array, "B G E"],
    next_item_emb: Float[Array, "B K E"],
    next_item_mask: Bool[Array, "B K"],
    negative_emb: Float[Array, "B M E"],
    negative_mask: Bool[Array, "B M"],
    *,
    similarity_temperature: float,
) -> Float[Array, "B G"]:
    """log p(next item | user view) among the sampled negatives, in (-inf, 0].

    The mean over the next items of an example, each against the same negatives.
    -log(1 + M) when all embeddings are equal. Masked negatives contribute zero.
    """
    tau = similarity_temperature
    positive = jnp.einsum("BGE,BKE->BGK", view, next_item_emb) / tau
    negative = jnp.einsum("BGE,BME->BGM", view, negative_emb) / tau
    negative = jnp.where(negative_mask[:, None], negative, -jnp.inf)
    others = jax.nn.logsumexp(negative, axis=-1, keepdims=True)  # [B G 1]
    return mean_over_items(-jax.nn.softplus(others - positive), next_item_mask)


def item_to_user(
    view: Float[Array, "B G E"],
    next_item_emb: Float[Array, "B K E"],
    next_item_mask: Bool[Array, "B K"],
    in_batch_mask: Bool[Array, "B K B"],
    *,
    similarity_temperature: float,
) -> Float[Array, "B G"]:
    """log p(user view | next item) among the other users of the batch, in (-inf, 0].

    The mean over the next items of an example. Another user counts with the mean of
    exp(cosine / temperature) over its rollouts that have a vector. So each user has one
    unit of mass, the same for the whole group. So other users' sampling adds no noise
    to the differences within a group. -log(B) when all embeddings are equal and nothing
    is masked. 0 where no other user is left, as in a batch whose targets are all the
    same item.
    """
    tau = similarity_temperature
    positive = jnp.einsum("BGE,BKE->BGK", view, next_item_emb) / tau
    there = jnp.isfinite(view).all(axis=-1)  # [W G]
    known = jnp.where(there[:, :, None], view, 0.0)
    cosines = jnp.einsum("UKE,WGE->UKWG", next_item_emb, known) / tau  # of u to all w
    cosines = jnp.where(there[None, None], cosines, -jnp.inf)
    count = jnp.maximum(there.sum(axis=-1), 1)
    log_mass = jax.nn.logsumexp(cosines, axis=-1) - jnp.log(count)[None, None]
    log_mass = jnp.where(in_batch_mask, log_mass, -jnp.inf)
    others = jax.nn.logsumexp(log_mass, axis=-1)[:, None]  # [B 1 K]
    return mean_over_items(-jax.nn.softplus(others - positive), next_item_mask)


def mean_over_items(
    values: Float[Array, "B G K"], next_item_mask: Bool[Array, "B K"]
) -> Float[Array, "B G"]:
    """The mean over an example's next items; an addition to the paper for K > 1.

    One target says little of a profile: averaging several that follow the same history
    takes its noise out of the reward.
    """
    mask = next_item_mask[:, None]
    return jnp.where(mask, values, 0.0).sum(-1) / mask.sum(-1)


def embedding(
    history_profile_emb: Float[Array, "B G E"],
    profile_emb: Float[Array, "B G E"],
    next_item_emb: Float[Array, "B K E"],
    next_item_mask: Bool[Array, "B K"],
    negative_emb: Float[Array, "B M E"],
    negative_mask: Bool[Array, "B M"],
    in_batch_mask: Bool[Array, "B K B"],
    *,
    history_profile: float,
    profile: float,
    u2i: float,
    i2u: float,
    similarity_temperature: float,
) -> Float[Array, "B G"]:
    """The embedding-space reward: both views, both directions, in (-inf, 0].

    sum_v w_v sum_d w_d r_vd / (sum w_v * sum w_d): with every weight 1 the mean over
    views of the mean over directions (BLUE, section 2.2). A weight of 0 is an ablation.
    """
    next_items, tau = (next_item_emb, next_item_mask), similarity_temperature
    total = jnp.zeros(profile_emb.shape[:2])
    views = ((history_profile, history_profile_emb), (profile, profile_emb))
    directions = (
        (u2i, user_to_item, (negative_emb, negative_mask)),
        (i2u, item_to_user, (in_batch_mask,)),
    )
    for view_weight, view in views:
        for weight, direction, others in directions:
            if view_weight and weight:
                r = direction(view, *next_items, *others, similarity_temperature=tau)
                total += view_weight * weight * r
    return total / ((history_profile + profile) * (u2i + i2u))


def choice(
    choice_scores: Float[Array, "B G O"],
    choice_answer: Float[Array, "B O"],
    *,
    num_options: int,
) -> Float[Array, "B G"]:
    """1 where the judge picks the next item from the profile alone, else 0.

    BLUE's text-space reward, among `num_options` titles (O). A tie with another option
    is not a pick. NaN where an option has no finite score.
    """
    assert choice_scores.shape[-1] == num_options
    answer = choice_answer[:, None]
    scored = jnp.isfinite(choice_scores).all(axis=-1)
    right = jnp.sum(choice_scores * answer, axis=-1)
    best_other = jnp.max(jnp.where(answer > 0, -jnp.inf, choice_scores), axis=-1)
    return jnp.where(scored, (right > best_other).astype(jnp.float32), jnp.nan)


def unfinished(finished: Bool[Array, "B G"]) -> Float[Array, "B G"]:
    """-1 for a profile without an end token, else 0. An addition to the paper."""
    return -(~finished).astype(jnp.float32)


def repetition(repeated_words: Float[Array, "B G"]) -> Float[Array, "B G"]:
    """Minus the share of repeated words, in [-1, 0]. An addition to the paper."""
    return -repeated_words


def combine(
    parts: Mapping[str, Float[Array, "B G"]], weights: Mapping[str, float]
) -> Float[Array, "B G"]:
    """The weighted sum of the rewards. NaN where it is not finite or exceeds 1e15 in
    size: the completion has no reward. A reward of weight 0 adds nothing, even NaN."""
    total = jnp.zeros(next(iter(parts.values())).shape)
    for name, weight in weights.items():
        if weight:
            total += weight * parts[name]
    return jnp.where(jnp.abs(total) <= MAX_REWARD, total, jnp.nan)
