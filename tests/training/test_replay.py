"""A replay finds what broke a batch."""

import jax
import jax.numpy as jnp
import numpy as np

from blue.training import replay


def test_a_replay_finds_the_row_whose_gradient_alone_is_broken():
    """sqrt(x) is finite at 0, its slope is not."""
    x = np.array([1.0, 4.0, 0.0, 0.0], np.float32)
    root = lambda v: jnp.sqrt(v).sum()
    loss = lambda w, _, counts: root(jnp.where(counts, x * w["w"], 1.0))
    found = replay.first_bad_gradient(
        replay.StageReplay(
            None, None, (x,), jax.value_and_grad(loss), lambda params: [],
            lambda row: (np.arange(4) == row,),
        ),
        {"w": np.ones(4, np.float32)},
        {},
    )  # fmt: skip
    assert found == ("gradient of w", 2, ())


def test_the_first_term_that_is_not_finite_where_it_counts():
    values = np.array([[1.0, np.nan], [2.0, 3.0]])
    counts = np.array([[True, False], [True, True]])
    fine = replay.Term("reference log-probability", values, counts)
    assert replay.first_bad([fine, replay.Term("advantage", np.ones(2))]) is None
    bad = replay.Term("advantage", np.array([[1.0, 2.0], [np.inf, 3.0]]))
    assert replay.first_bad([fine, bad]) == ("advantage", 1, (0,))
    later = replay.Term("log-probability", values)
    assert replay.first_bad([bad, later])[0] == "advantage"  # as they are computed


def test_what_was_found_is_told_in_lines():
    found = {
        "stage": "profiler", "step": 3, "parameters_of_step": 2, "loss": 0.25,
        "grad_norm": 1.5, "grad_norms": {"layers/q": 1.5}, "left_out": 2,
        "first": ("advantage", 4, (1,)), "user": 7, "broken": [], "skipped": True,
    }  # fmt: skip
    lines = replay.describe(found)
    assert lines[0] == "profiler, step 3, with the parameters of step 2"
    assert lines[1] == "loss 0.25, gradient norm 1.5"
    assert lines[-2] == "2 profiles taught nothing: no valid reward"
    assert lines[-1] == "first not finite: advantage, row 4, user 7 of the log, at [1]"
    fine = found | {"first": None, "left_out": 0, "skipped": False}
    assert "all is finite: what broke it came with" in replay.describe(fine)[-1]
