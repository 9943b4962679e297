"""What training stages share around their loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blue import errors
from blue.hub.model import Model
from blue.models import families
from blue.runtime.sharding import make_mesh, put, replicated
from blue.training import session
from blue.training.optimizers import init_state
from blue.workdir.checkpoints import Checkpoints


def test_too_many_non_finite_updates_stop_the_run():
    kept = []
    stop = lambda skipped: session.stop_if_not_finite(
        {"skipped_in_row": skipped}, 7, 3, lambda: kept.append(skipped)
    )
    stop(0.0), stop(1.0), stop(2.0)
    with pytest.raises(errors.NonFinite, match="step 7: 3 updates"):
        stop(3.0)
    assert kept == [1.0, 3.0]  # the first of a row, and the one that ends the run


def test_a_broken_state_is_refused_not_trained(tmp_path):
    saved = Checkpoints(tmp_path / "c", keep=1, milestone_every=0)
    mesh = make_mesh(1, -1, 1)
    optimizer = optax.sgd(0.1)
    weights = {"layers": {"w": np.array([1.0, np.nan], np.float32)}}
    params = put(weights, replicated(mesh))
    cfg = families.preset("tiny_gemma3")
    model = Model(cfg, params, None, "our model")  # pyright: ignore
    with pytest.raises(ValueError, match="our model has .* not finite in layers/w:"):
        session.start(saved, optimizer, model, mesh, {}, "auto")
    assert saved.latest_step() is None
    saved.save(3, init_state(params, optimizer), {})
    good = model._replace(params=jax.tree.map(jnp.ones_like, params))
    words = "c/3 has .* not finite in params/layers/w: remove it"
    with pytest.raises(ValueError, match=words):
        session.start(saved, optimizer, good, mesh, {}, "auto")
