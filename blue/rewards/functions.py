"""Rewards: one pure function each over arrays the stage has computed once.

Every reward is [B, G], larger is better. Their weights, and whatever else they take,
are in the config under `rewards.<name>`; adding one is a function here and a config
line.

BLUE, https://arxiv.org/abs/2605.06981: the embedding-space reward, the text-space
next-item reward, and their unweighted sum. `unfinished` and `repetition` are additions
to the paper.

A profile that a scorer could not score (NaN among its vectors or option scores) has the
reward NaN and is left out of its group; it changes no other profile's reward. An empty
profile is a profile: its texts are scored as they stand, so the embedding reward is
near that of no information, and a likelihood reader, whose scores are then all equal,
picks nothing.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MAX_REWARD = 1e15  # beyond it squares overflow float32: no score anyone meant


class RewardInputs(NamedTuple):
    """What rewards may look at. Unit vectors are of the frozen encoder."""

    history_profile_emb: Float[Array, "B G E"]  # view recent history + profile
    profile_emb: Float[Array, "B G E"]  # view profile alone
    next_item_emb: Float[Array, "B K E"]  # the paper has one, K = 1
    next_item_mask: Bool[Array, "B K"]
    negative_emb: Float[Array, "B M E"]  # sampled once a user, shared by the group
    negative_mask: Bool[Array, "B M"]
    in_batch_mask: Bool[Array, "B K B"]  # [u, k, w]: may w be another user of u's k?
    choice_scores: Float[Array, "B G O"]  # the reader's score of each option
    choice_answer: Float[Array, "B O"]  # 1 at the next item, else 0
    finished: Bool[Array, "B G"]  # an end token was sampled
    repeated_words: Float[Array, "B G"]  # share of a profile's words said before


def user_to_item(
    view: Float[Array, "B G E"], x: RewardInputs, *, similarity_temperature: float
) -> Float[Array, "B G"]:
    """log p(next item | user view) among the sampled negatives, in (-inf, 0].

    The mean over the next items of an example, each against the same negatives.
    -log(1 + M) when all embeddings are equal. Masked negatives contribute zero.
    """
    tau = similarity_temperature
    positive = jnp.einsum("BGE,BKE->BGK", view, x.next_item_emb) / tau
    negative = jnp.einsum("BGE,BME->BGM", view, x.negative_emb) / tau
    negative = jnp.where(x.negative_mask[:, None], negative, -jnp.inf)
    others = jax.nn.logsumexp(negative, axis=-1, keepdims=True)  # [B G 1]
    return mean_over_items(-jax.nn.softplus(others - positive), x)


def item_to_user(
    view: Float[Array, "B G E"], x: RewardInputs, *, similarity_temperature: float
) -> Float[Array, "B G"]:
    """log p(user view | next item) among the other users of the batch, in (-inf, 0].

    The mean over the next items of an example. Another user counts with the mean of
    exp(cosine / temperature) over its G rollouts (those of them that have a vector):
    one unit of mass a user, the same for the whole group. So other users' sampling
    adds no noise to the differences within a group. -log(B) when all embeddings are
    equal and nothing is masked; 0 where nobody is left to compare with, as in a batch
    whose targets are all the same item.
    """
    tau = similarity_temperature
    positive = jnp.einsum("BGE,BKE->BGK", view, x.next_item_emb) / tau
    there = jnp.isfinite(view).all(axis=-1)  # [W G]
    seen = jnp.where(there[:, :, None], view, 0.0)
    cosines = jnp.einsum("UKE,WGE->UKWG", x.next_item_emb, seen) / tau  # of u to all w
    cosines = jnp.where(there[None, None], cosines, -jnp.inf)
    count = jnp.maximum(there.sum(axis=-1), 1)
    log_mass = jax.nn.logsumexp(cosines, axis=-1) - jnp.log(count)[None, None]
    log_mass = jnp.where(x.in_batch_mask, log_mass, -jnp.inf)
    others = jax.nn.logsumexp(log_mass, axis=-1)[:, None]  # [B 1 K]
    return mean_over_items(-jax.nn.softplus(others - positive), x)


def mean_over_items(
    values: Float[Array, "B G K"], x: RewardInputs
) -> Float[Array, "B G"]:
    """The mean over an example's next items; an addition to the paper for K > 1.

    One target says little of a profile: averaging several that follow the same history
    takes its noise out of the reward.
    """
    mask = x.next_item_mask[:, None]
    return jnp.where(mask, values, 0.0).sum(-1) / mask.sum(-1)


def embedding(
    x: RewardInputs,
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
    total = jnp.zeros(x.finished.shape)
    views = ((history_profile, x.history_profile_emb), (profile, x.profile_emb))
    for view_weight, view in views:
        for weight, direction in ((u2i, user_to_item), (i2u, item_to_user)):
            if view_weight and weight:
                r = direction(view, x, similarity_temperature=similarity_temperature)
                total += view_weight * weight * r
    return total / ((history_profile + profile) * (u2i + i2u))


def choice(x: RewardInputs) -> Float[Array, "B G"]:
    """1 where the reader picks the next item from the profile alone, else 0.

    BLUE's text-space reward. A tie with another option is not a pick. NaN where an
    option has no finite score.
    """
    answer = x.choice_answer[:, None]
    scored = jnp.isfinite(x.choice_scores).all(axis=-1)
    right = jnp.sum(x.choice_scores * answer, axis=-1)
    best_other = jnp.max(jnp.where(answer > 0, -jnp.inf, x.choice_scores), axis=-1)
    return jnp.where(scored, (right > best_other).astype(jnp.float32), jnp.nan)


def unfinished(x: RewardInputs) -> Float[Array, "B G"]:
    """-1 for a profile without an end token, else 0. An addition to the paper."""
    return -(~x.finished).astype(jnp.float32)


def repetition(x: RewardInputs) -> Float[Array, "B G"]:
    """Minus the share of repeated words, in [-1, 0]. An addition to the paper."""
    return -x.repeated_words


def combine(
    x: RewardInputs, weights: Mapping[str, float], options: Mapping[str, Mapping]
) -> tuple[Float[Array, "B G"], dict[str, Float[Array, "B G"]]]:
    """The weighted sum, and each reward before its weight.

    weights: {name of a function above: weight}; options: its keyword arguments. A
    reward of weight 0 is still computed, to be logged, but adds nothing, be it NaN. The
    sum is finite and at most 1e15 in size, or NaN: the completion has no reward.
    """
    parts = {name: globals()[name](x, **options[name]) for name in weights}
    total = jnp.zeros(x.finished.shape)
    for name, weight in weights.items():
        if weight:
            total += weight * parts[name]
    return jnp.where(jnp.abs(total) <= MAX_REWARD, total, jnp.nan), parts
