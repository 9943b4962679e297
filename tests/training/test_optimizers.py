import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blue.training import optimizers
from blue.training.optimizers import (
    init_state,
    make_optimizer,
    make_schedule,
    non_finite_leaves,
)

apply_gradients = jax.jit(optimizers.apply_gradients, static_argnums=3)


@functools.cache
def make(lr=0.1):
    schedule = make_schedule(lr, kind="constant", warmup_steps=1, num_steps=10)
    return make_optimizer(schedule, b1=0.9, b2=0.95, eps=1e-8, grad_clip=1.0)


def test_adam_by_hand_after_one_warmup_step():
    opt = make()
    state = init_state({"w": jnp.array([1.0, -2.0])}, opt)
    grads = {"w": jnp.array([0.3, 0.4])}  # norm .5: not clipped
    state, norm = apply_gradients(state, grads, jnp.float32(0), opt)
    np.testing.assert_allclose(norm, 0.5, rtol=1e-6)
    np.testing.assert_array_equal(state.params["w"], [1.0, -2.0])  # lr 0 at step 0
    state, _ = apply_gradients(state, grads, jnp.float32(0), opt)
    # equal gradients: both corrected moments are g and g^2, the step is lr * sign
    np.testing.assert_allclose(state.params["w"], [0.9, -2.1], rtol=1e-5)


def test_global_norm_is_clipped():
    opt = make()
    state = init_state({"w": jnp.zeros(2)}, opt)
    one = {"w": jnp.array([30.0, 40.0])}
    state, norm = apply_gradients(state, one, jnp.float32(0), opt)
    np.testing.assert_allclose(norm, 50.0, rtol=1e-6)  # before clipping
    mu = state.opt_state[1].mu["w"]
    np.testing.assert_allclose(mu, [0.06, 0.08], rtol=1e-5)  # 0.1 * unit vector


@pytest.mark.parametrize("bad", ["gradient", "loss"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_leaves_every_bit_and_is_counted(bad, value):
    opt = make()
    state = init_state({"w": jnp.array([1.0, 2.0]), "v": jnp.ones(3)}, opt)
    good = jax.tree.map(jnp.ones_like, state.params)
    for _ in range(2):
        state, _ = apply_gradients(state, good, jnp.float32(0), opt)
    grads = {**good, "w": jnp.array([1.0, value])} if bad == "gradient" else good
    loss = jnp.float32(value if bad == "loss" else 0.0)
    new, _ = apply_gradients(state, grads, loss, opt)
    same = lambda a, b: np.testing.assert_array_equal(a, b)
    jax.tree.map(same, (new.params, new.opt_state), (state.params, state.opt_state))
    assert (new.step, new.skipped, new.skipped_in_row) == (3, 1, 1)
    new, _ = apply_gradients(new, good, jnp.float32(0), opt)
    assert (new.skipped, new.skipped_in_row) == (1, 0)


def test_a_step_to_a_non_finite_parameter_is_not_taken():
    """Finite loss and gradient, and an update beyond float32."""
    opt = make(lr=1e39)
    state = init_state({"w": jnp.array([1.0, 2.0])}, opt)
    state = state._replace(step=state.step + 1)
    grads = {"w": jnp.array([0.3, 0.4])}
    state, _ = apply_gradients(state, grads, jnp.float32(0), opt)  # warm-up: 0 or NaN
    for _ in range(2):
        new, norm = apply_gradients(state, grads, jnp.float32(0), opt)
        assert jnp.isfinite(norm)
        jax.tree.map(np.testing.assert_array_equal, new.params, state.params)
        assert new.skipped_in_row == state.skipped_in_row + 1
        assert not non_finite_leaves(new)
        state = new


def test_a_state_that_came_in_broken_is_never_updated_and_is_named():
    opt = make()
    state = init_state({"w": jnp.array([1.0, np.nan]), "v": jnp.ones(3)}, opt)
    assert non_finite_leaves(state) == ["params/w"]
    grads = jax.tree.map(jnp.ones_like, state.params)
    new, _ = apply_gradients(state, grads, jnp.float32(0), opt)
    assert new.skipped == 1 and (new.params["v"] == 1).all()


def test_schedules():
    cosine = make_schedule(2.0, kind="cosine", warmup_steps=2, num_steps=12)
    np.testing.assert_allclose(
        [cosine(0), cosine(1), cosine(2), cosine(7), cosine(12)],
        [0, 1, 2, 1, 0],
        atol=1e-6,
    )
    constant = make_schedule(2.0, kind="constant", warmup_steps=2, num_steps=12)
    np.testing.assert_allclose([constant(1), constant(2), constant(12)], [1, 2, 2])
    for warmup, rates in ((0, [2, 2, 2]), (1, [0, 2, 2])):
        at = make_schedule(2.0, kind="constant", warmup_steps=warmup, num_steps=12)
        np.testing.assert_allclose([at(0), at(1), at(2)], rates)
