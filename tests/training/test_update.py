"""What every update reports, with numbers worked by hand."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blue.training.optimizers import init_state
from blue.training.update import take_step

SCHEDULE = lambda step: 0.1 * (step + 1)


@pytest.mark.parametrize("bad", [False, True])
def test_a_step_reports_its_norm_and_rate_and_skips_what_is_not_finite(bad):
    optimizer = optax.sgd(SCHEDULE)
    state = init_state({"w": jnp.array([1.0, 2.0])}, optimizer)
    grads = {"w": jnp.array([3.0, 4.0])}
    loss = jnp.float32(np.nan if bad else 7.0)
    new, info = take_step(state, grads, loss, optimizer, SCHEDULE)
    want = [1.0, 2.0] if bad else [0.7, 1.6]  # w - 0.1 g
    np.testing.assert_allclose(new.params["w"], want, rtol=1e-6)
    assert float(info["optim/grad_norm"]) == 5.0
    np.testing.assert_allclose(info["optim/lr"], 0.1)  # of this step, not the next
    assert int(info["optim/skipped"]) == int(info["skipped_in_row"]) == int(bad)
    assert int(new.step) == 1
    _, info = take_step(new, grads, jnp.float32(7), optimizer, SCHEDULE)
    assert int(info["optim/skipped"]) == int(bad) and int(info["skipped_in_row"]) == 0
    np.testing.assert_allclose(info["optim/lr"], 0.2)
