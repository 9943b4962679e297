import functools

import jax
import jax.numpy as jnp
import numpy as np

from blue.training import losses


def gradient(function):
    return jax.jit(jax.grad(function))


def random(key, *shape):
    rng = np.random.default_rng(key)
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def test_k3_is_zero_at_equality_positive_elsewhere_with_its_gradient():
    a = jnp.array([-1.0, -2.0, -0.5])
    assert (losses.k3(a, a) == 0).all()
    assert (losses.k3(a, a + jnp.array([0.3, -0.4, 2.0])) > 0).all()
    # d/dlogp [exp(d) - d - 1], d = ref - logp, is 1 - exp(d)
    got = gradient(lambda x: losses.k3(x, jnp.float32(-1.0)))(jnp.float32(-1.5))
    np.testing.assert_allclose(got, 1 - np.exp(0.5), rtol=1e-5)


@functools.partial(jax.jit, static_argnames="kl_coef")
def grpo(logprobs, ref, mask, advantages, sampler=None, kl_coef=0.0):
    entropy = jnp.zeros_like(logprobs)
    sampler = logprobs if sampler is None else sampler
    return losses.grpo_loss(
        logprobs, entropy, sampler, ref, mask, advantages, clip_eps=0.2, kl_coef=kl_coef
    )


def test_grpo_on_policy_gradient_is_reinforce():
    lp, ref = -jnp.abs(random(0, 2, 3, 4)), -jnp.abs(random(1, 2, 3, 4))
    A, mask = random(2, 2, 3), random(3, 2, 3, 4) > 0
    got = gradient(lambda x: grpo(x, ref, mask, A).loss)(lp)
    np.testing.assert_allclose(got, jnp.where(mask, -A[..., None], 0.0), atol=1e-6)
    with_kl = gradient(lambda x: grpo(x, ref, mask, A, kl_coef=0.5).loss)(lp)
    want = jnp.where(mask, -A[..., None] + 0.5 * (1 - jnp.exp(ref - lp)), 0.0)
    np.testing.assert_allclose(with_kl, want, atol=1e-5)


def test_grpo_worked_numbers():
    lp = jnp.log(jnp.array([[[0.5, 0.25]]]))
    ref = jnp.log(jnp.array([[[0.25, 0.25]]]))
    sums = grpo(
        lp, ref, jnp.ones((1, 1, 2), bool), jnp.array([[2.0]]), lp - 0.1, kl_coef=0.1
    )
    # first token: d = log .5, k3 = .5 + .6931 - 1 = .1931; loss = 2*(-2) + .1*.1931
    np.testing.assert_allclose(sums.kl, 0.19315, atol=1e-5)
    np.testing.assert_allclose(sums.loss, -4 + 0.019315, atol=1e-5)
    np.testing.assert_allclose([sums.gap, sums.gap_max], [0.2, 0.1], atol=1e-6)
    assert sums.clipped == 0


def test_masked_tokens_do_nothing_not_even_nan():
    lp = jnp.array([[[-1.0, jnp.nan]]])
    mask, A = jnp.array([[[True, False]]]), jnp.array([[1.0]])
    sums = grpo(lp, lp, mask, A, kl_coef=1.0)
    assert jnp.isfinite(sums.loss) and sums.loss == -1.0
    slope = gradient(lambda x: grpo(x, lp, mask, A, kl_coef=1.0).loss)(lp)
    assert slope.tolist() == [[[-1.0, 0.0]]]
    # nor does the advantage of a row that is masked altogether
    two = jnp.full((1, 2, 2), -1.0)
    rows = jnp.array([[[True, True], [False, False]]])
    loss = lambda x: grpo(x, two, rows, jnp.array([[1.0, jnp.nan]]), kl_coef=1.0).loss
    assert loss(two) == -2.0
    assert gradient(loss)(two).tolist() == [[[-1.0, -1.0], [0.0, 0.0]]]


def test_nothing_to_learn_from_is_zero_not_nan():
    lp, none = -jnp.abs(random(0, 2, 3, 4)), jnp.zeros((2, 3, 4), bool)
    sums = grpo(lp, 2 * lp, none, random(1, 2, 3), kl_coef=1.0)
    assert all(x == 0 for x in sums)
    assert losses.sft_loss(lp, none) == 0
    # equal rewards: advantage 0, and at the reference the gradient is 0
    full = jnp.ones((2, 3, 4), bool)
    slope = gradient(lambda x: grpo(x, lp, full, jnp.zeros((2, 3)), kl_coef=1.0).loss)
    assert (slope(lp) == 0).all()


contrastive = jax.jit(
    losses.supervised_contrastive, static_argnames="similarity_temperature"
)


def test_contrastive_of_one_item_only():
    """All targets the same: everything is a positive, nothing is a negative."""
    e = jnp.broadcast_to(random(1, 1, 4), (5, 4))
    ids = jnp.full(5, 7)
    loss = lambda u: contrastive(u, e, ids, similarity_temperature=0.5)
    assert jnp.isfinite(loss(random(0, 5, 4)))
    value, slope = jax.jit(jax.value_and_grad(loss))(e)
    np.testing.assert_allclose(value, np.log(5), rtol=1e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-6)


def test_supervised_contrastive():
    same = jnp.ones((512, 4)) / 2.0
    loss = contrastive(same, same, jnp.arange(512), similarity_temperature=0.07)
    np.testing.assert_allclose(loss, 6.238, atol=1e-3)  # log 512
    # two rows share their item: both columns are positives of both rows
    u, e = random(0, 3, 4), random(1, 3, 4)
    got = contrastive(u, e, jnp.array([7, 7, 1]), similarity_temperature=0.5)
    s = np.asarray(u @ e.T, np.float64) / 0.5
    lp = lambda x: x - np.log(np.exp(x).sum(1, keepdims=True))
    one_way = lambda p: (
        -np.mean([(p[0, 0] + p[0, 1]) / 2, (p[1, 0] + p[1, 1]) / 2, p[2, 2]])
    )
    np.testing.assert_allclose(got, (one_way(lp(s)) + one_way(lp(s.T))) / 2, rtol=1e-5)


def test_sft_loss_counts_only_the_mask():
    lp = jnp.array([[[-1.0, -2.0, -4.0]]])
    assert losses.sft_loss(lp, jnp.array([[[True, False, True]]])) == 5.0
