import functools
import inspect
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blue.rewards import advantages, functions
from blue.rewards.functions import choice, repetition, unfinished

B, G, K, M, E, O = 4, 3, 1, 6, 5, 4  # noqa: E741
TAU = 0.07
ALL = {"history_profile": 1.0, "profile": 1.0, "u2i": 1.0, "i2u": 1.0}


# Compiled whole: operation by operation it takes ten times as long.
jit = functools.partial(jax.jit, static_argnames="similarity_temperature")
group_advantages = jax.jit(advantages.group_advantages)
embedding = jit(functions.embedding, static_argnames=("similarity_temperature", *ALL))
user_to_item, item_to_user = jit(functions.user_to_item), jit(functions.item_to_user)


def combine(parts, weights):
    return jax.jit(lambda parts: functions.combine(parts, weights))(parts)


def unit(key, *shape):
    x = np.random.default_rng(key).normal(size=shape).astype(np.float32)
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


class Inputs(SimpleNamespace):
    """Inputs by name; some replaced by others."""

    def _replace(self, **changes):
        return Inputs(**vars(self) | changes)


def of(reward, x, **arguments):
    """The reward of the inputs that its positional parameters name."""
    kinds = inspect.signature(reward).parameters.values()
    names = [p.name for p in kinds if p.kind is not p.KEYWORD_ONLY]
    return reward(*(getattr(x, name) for name in names), **arguments)


def u2i(view, x):
    items = x.next_item_emb, x.next_item_mask, x.negative_emb, x.negative_mask
    return user_to_item(view, *items, similarity_temperature=TAU)


def i2u(view, x):
    items = x.next_item_emb, x.next_item_mask
    return item_to_user(view, *items, x.in_batch_mask, similarity_temperature=TAU)


def inputs(**changes):
    x = Inputs(
        history_profile_emb=unit(0, B, G, E),
        profile_emb=unit(1, B, G, E),
        next_item_emb=unit(2, B, K, E),
        next_item_mask=jnp.ones((B, K), bool),
        negative_emb=unit(3, B, M, E),
        negative_mask=jnp.ones((B, M), bool),
        in_batch_mask=~jnp.eye(B, dtype=bool)[:, None],
        choice_scores=jax.random.normal(jax.random.key(4), (B, G, O)),
        choice_answer=jax.nn.one_hot(jnp.array([0, 1, 2, 3]), O),
        finished=jnp.array([[True, False, True]] * B),
        repeated_words=jnp.full((B, G), 0.25),
    )
    return x._replace(**changes)


def by_hand(view, x):
    """The embedding reward of one view in loops over float64."""
    view, y, neg = (
        np.asarray(a, np.float64) for a in (view, x.next_item_emb[:, 0], x.negative_emb)
    )
    u2i, i2u = np.zeros((B, G)), np.zeros((B, G))
    for u in range(B):
        for g in range(G):
            pos = np.exp(view[u, g] @ y[u] / TAU)
            z = pos + sum(
                np.exp(view[u, g] @ neg[u, m] / TAU)
                for m in range(M)
                if x.negative_mask[u, m]
            )
            u2i[u, g] = np.log(pos / z)
            z = pos + sum(
                np.mean([np.exp(y[u] @ view[w, h] / TAU) for h in range(G)])
                for w in range(B)
                if x.in_batch_mask[u, 0, w]
            )
            i2u[u, g] = np.log(pos / z)
    return u2i, i2u


def test_embedding_equals_the_formula():
    mask = jnp.ones((B, M), bool).at[0, 2].set(False)
    x = inputs(negative_mask=mask)
    got = of(embedding, x, **ALL, similarity_temperature=TAU)
    both = [by_hand(v, x) for v in (x.history_profile_emb, x.profile_emb)]
    want = np.mean([(u + i) / 2 for u, i in both], axis=0)
    np.testing.assert_allclose(got, want, rtol=2e-5)


@pytest.mark.parametrize(
    "off", ["history_profile", "profile", "u2i", "i2u"], ids=lambda s: f"without-{s}"
)
def test_an_ablation_is_the_mean_of_what_is_left(off):
    x = inputs()
    hp, p = (by_hand(v, x) for v in (x.history_profile_emb, x.profile_emb))
    weights = ALL | {off: 0.0}
    got = of(embedding, x, **weights, similarity_temperature=TAU)
    views = {"history_profile": [p], "profile": [hp]}.get(off, [hp, p])
    pick = {"u2i": lambda d: d[1], "i2u": lambda d: d[0]}.get(
        off, lambda d: (d[0] + d[1]) / 2
    )
    np.testing.assert_allclose(got, np.mean([pick(v) for v in views], 0), rtol=2e-5)


def test_identical_embeddings_give_the_chance_values():
    one = unit(9, 1, E)
    x = inputs(
        history_profile_emb=jnp.broadcast_to(one, (64, G, E)),
        profile_emb=jnp.broadcast_to(one, (64, G, E)),
        next_item_emb=jnp.broadcast_to(one, (64, 1, E)),
        next_item_mask=jnp.ones((64, 1), bool),
        negative_emb=jnp.broadcast_to(one, (64, 128, E)),
        negative_mask=jnp.ones((64, 128), bool),
        in_batch_mask=~jnp.eye(64, dtype=bool)[:, None],
        finished=jnp.ones((64, G), bool),
    )
    np.testing.assert_allclose(u2i(x.profile_emb, x), -4.860, atol=5e-4)  # -log 129
    np.testing.assert_allclose(i2u(x.profile_emb, x), -4.159, atol=5e-4)  # -log 64


def test_several_next_items_are_averaged():
    mask = jnp.array(
        [[True, True, True], [True, False, True], [True] + [False] * 2, [True] * 3]
    )
    others = jax.random.bernoulli(jax.random.key(7), 0.6, (B, 3, B))
    x = inputs(
        next_item_emb=unit(6, B, 3, E), next_item_mask=mask, in_batch_mask=others
    )
    got = of(embedding, x, **ALL, similarity_temperature=TAU)
    one = [
        of(
            embedding,
            inputs(
                next_item_emb=x.next_item_emb[:, k : k + 1],
                in_batch_mask=others[:, k : k + 1],
            ),
            **ALL,
            similarity_temperature=TAU,
        )
        for k in range(3)
    ]
    weights = (
        np.asarray(mask, np.float64)[:, None] / np.asarray(mask).sum(1)[:, None, None]
    )
    want = (np.stack(one, axis=-1) * weights).sum(-1)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_masked_terms_are_as_if_removed():
    x = inputs(negative_mask=jnp.ones((B, M), bool).at[:, 4:].set(False))
    less = inputs(
        negative_emb=x.negative_emb[:, :4], negative_mask=jnp.ones((B, 4), bool)
    )
    a, b = u2i(x.profile_emb, x), u2i(x.profile_emb, less)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    # nobody else to compare with: the positive alone, log 1
    alone = inputs(in_batch_mask=jnp.zeros((B, K, B), bool))
    np.testing.assert_allclose(i2u(x.profile_emb, alone), 0.0, atol=1e-6)


def test_i2u_keeps_the_order_of_the_positive_cosine():
    x = inputs()
    next_item = x.next_item_emb[:, 0]
    cosine = jnp.einsum("BGE,BE->BG", x.profile_emb, next_item)
    order = jnp.argsort(i2u(x.profile_emb, x), axis=1)
    assert (jnp.argsort(cosine, axis=1) == order).all()
    # index-matched negatives (rollout g against rollout g) would not: pure noise
    by_index = jnp.einsum("UE,WGE->UWG", next_item, x.profile_emb) / TAU
    by_index = jnp.where(x.in_batch_mask[:, 0, :, None], by_index, -jnp.inf)
    matched = cosine / TAU - jnp.logaddexp(
        cosine / TAU, jax.nn.logsumexp(by_index, axis=1)
    )
    assert (jnp.argsort(cosine, axis=1) != jnp.argsort(matched, axis=1)).any()


def test_choice_ties_are_wrong_and_other_rewards():
    scores = jnp.array([[[1.0, 0, 0, 0]], [[1, 1, 0, 0]], [[0, 0, 2, 1]]])
    x = inputs(
        choice_scores=scores, choice_answer=jax.nn.one_hot(jnp.array([0, 1, 3]), O)
    )
    assert of(choice, x, num_options=4)[:, 0].tolist() == [1.0, 0.0, 0.0]
    x = inputs()
    assert of(unfinished, x)[0].tolist() == [0.0, -1.0, 0.0]
    assert (of(repetition, x) == -0.25).all()


def test_combine_weighs():
    x = inputs()
    parts = {
        "choice": of(choice, x, num_options=O),
        "unfinished": of(unfinished, x),
        "repetition": jnp.full((B, G), jnp.nan),
    }
    total = combine(parts, {"choice": 2.0, "unfinished": 0.5, "repetition": 0.0})
    want = 2 * parts["choice"] + 0.5 * parts["unfinished"]
    np.testing.assert_allclose(total, want)
    shifted = group_advantages(total + jnp.arange(B)[:, None] * 7.0)
    np.testing.assert_allclose(group_advantages(total), shifted, atol=1e-3)


def total_of(x):
    parts = {
        "embedding": of(embedding, x, **ALL, similarity_temperature=TAU),
        "choice": of(choice, x, num_options=O),
    }
    return combine(parts, dict.fromkeys(parts, 1.0)), parts


def test_an_unscored_profile_has_no_reward_and_changes_no_other():
    x = inputs()
    whole, _ = total_of(x)
    # the judge failed on one profile, the encoder on another, in one of its views
    scores = x.choice_scores.at[0, 1, 2].set(jnp.nan)
    view = x.profile_emb.at[2, 0, 3].set(jnp.nan)
    total, parts = total_of(x._replace(choice_scores=scores, profile_emb=view))
    lost = jnp.isnan(total)
    assert np.argwhere(lost).tolist() == [[0, 1], [2, 0]]
    assert jnp.isnan(parts["choice"][0, 1]) and jnp.isfinite(parts["embedding"][0, 1])
    # as another user, user 2 counts with the mean over the profiles that have vectors
    keep = jnp.array([1, 2])
    two = x.profile_emb[2, keep].mean(0)  # same mean mass where both are the same
    same = x.profile_emb.at[2].set(jnp.broadcast_to(two, (G, E)))
    np.testing.assert_allclose(
        i2u(same.at[2, 0].set(jnp.nan), x)[:2], i2u(same, x)[:2], rtol=1e-5
    )
    scored = x._replace(choice_scores=scores)
    np.testing.assert_array_equal(total_of(scored)[0][1:], whole[1:])


def test_a_user_without_any_vector_is_no_other_user():
    x = inputs()
    view = x.profile_emb.at[3].set(jnp.nan)
    without = x._replace(in_batch_mask=x.in_batch_mask.at[:, :, 3].set(False))
    np.testing.assert_allclose(
        i2u(view, x)[:3], i2u(x.profile_emb, without)[:3], rtol=1e-6
    )


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e16, -1e30])
def test_a_reward_beyond_all_bounds_is_none(value):
    parts = {"one": jnp.zeros((B, G)).at[1, 1].set(value), "two": jnp.ones((B, G))}
    total = combine(parts, {"one": 1.0, "two": 0.0})
    assert np.argwhere(~np.isfinite(total)).tolist() == [[1, 1]]
    unweighted = combine(parts, {"one": 0.0, "two": 1.0})
    assert jnp.isfinite(unweighted).all()


def test_a_batch_of_one_target_and_equal_profiles_teaches_nothing():
    """Nobody is another user; all profiles of a user are the same, and empty."""
    one = lambda seed: jnp.broadcast_to(unit(seed, B, 1, E), (B, G, E))
    x = inputs(
        next_item_emb=jnp.broadcast_to(unit(2, 1, 1, E), (B, K, E)),
        in_batch_mask=jnp.zeros((B, K, B), bool),
        history_profile_emb=one(0),
        profile_emb=jnp.broadcast_to(unit(1, 1, 1, E), (B, G, E)),
        choice_scores=jnp.zeros((B, G, O)),  # of an empty profile, less the prior
        finished=jnp.ones((B, G), bool),
        repeated_words=jnp.zeros((B, G)),
    )
    total, parts = total_of(x)
    assert (i2u(x.profile_emb, x) == 0).all() and (parts["choice"] == 0).all()
    assert jnp.isfinite(total).all()
    np.testing.assert_allclose(group_advantages(total), 0, atol=0.2)
