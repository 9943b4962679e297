import jax
import jax.numpy as jnp
import numpy as np

from blue.advantages import group_advantages, zero_variance_fraction


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
    assert zero_variance_fraction(r) == 1.0
    assert zero_variance_fraction(jnp.array([[0.0, 1.0], [2.0, 2.0]])) == 0.5
