import jax
import jax.numpy as jnp
import numpy as np

from blue.rewards import advantages
from blue.rewards.advantages import teaching

group_advantages = jax.jit(advantages.group_advantages)


def test_worked_numbers():
    got = group_advantages(jnp.array([[1.0, 3.0], [5.0, 5.0]]))
    np.testing.assert_allclose(got, [[-1, 1], [0, 0]], atol=1e-6)


def test_constants_and_scale_of_a_group_change_nothing():
    r = jax.random.normal(jax.random.key(0), (5, 8))
    shifted = 3.0 * r + jnp.arange(5.0)[:, None]
    np.testing.assert_allclose(
        group_advantages(r), group_advantages(shifted), atol=1e-4
    )
    np.testing.assert_allclose(group_advantages(r).sum(axis=1), 0, atol=1e-5)


def test_equal_rewards_give_no_huge_advantages():
    # the float32 std of eight times 0.35 is 3e-8, not 0
    r = jnp.full((1, 8), 0.35)
    assert jnp.abs(group_advantages(r)).max() < 1e-2


def test_what_could_not_be_scored_is_as_if_removed():
    nan, inf = jnp.nan, jnp.inf
    r = jnp.array(
        [[1.0, nan, 3.0, nan], [2.0, nan, nan, inf], [nan] * 4, [0.0, 0.0, 0.0, 4.0]]
    )
    got = group_advantages(r)
    np.testing.assert_allclose(got[0], [-1, 0, 1, 0], atol=1e-6)  # as of [1, 3]
    assert (got[1:3] == 0).all()  # one alone, and none at all
    np.testing.assert_allclose(got[3], [-0.57735] * 3 + [1.73205], atol=1e-5)
    assert teaching(r).tolist() == [
        [True, False, True, False],
        [False] * 4,
        [False] * 4,
        [True] * 4,
    ]
    # and no NaN reaches what is derived from a finite reward
    weigh = lambda x: (group_advantages(x)[0] * jnp.arange(4.0)).sum()
    slope = jax.jit(jax.grad(weigh))(r)
    assert jnp.isfinite(slope[0, ::2]).all() and slope[0, 1] == slope[0, 3] == 0


def test_seven_against_one_is_bounded():
    got = group_advantages(jnp.array([[0.35] * 7 + [0.36]]))
    assert 2.5 < jnp.abs(got).max() < 2.7  # sqrt(7), not thousands
