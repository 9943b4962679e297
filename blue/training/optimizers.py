"""The optimizer of every stage, and the state that a step takes and returns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from blue.models.decoder import Params
from blue.runtime.programs import Program, compile_program, shardings_of
from blue.runtime.sharding import abstract, param_shardings


class TrainState(NamedTuple):
    """Everything a training stage carries from step to step; all of it is saved."""

    step: Int[Array, ""]  # optimizer steps tried
    params: Any
    opt_state: Any
    skipped: Int[Array, ""]  # updates skipped for non-finite numbers so far
    skipped_in_row: Int[Array, ""]


def make_schedule(
    lr: float, *, kind: str, warmup_steps: int, num_steps: int
) -> optax.Schedule:
    """Linear from 0 over `warmup_steps`, then "constant" or "cosine" to zero."""
    if kind == "constant":
        after = optax.constant_schedule(lr)
    else:
        assert kind == "cosine", kind
        after = optax.cosine_decay_schedule(lr, max(1, num_steps - warmup_steps))
    warmup = optax.linear_schedule(0.0, lr, max(1, warmup_steps))
    return optax.join_schedules([warmup, after], [warmup_steps])


def make_optimizer(
    schedule: optax.Schedule, *, b1: float, b2: float, eps: float, grad_clip: float
) -> optax.GradientTransformation:
    """Adam without decay behind a clip of the global norm."""
    return optax.chain(
        optax.clip_by_global_norm(grad_clip),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.scale_by_learning_rate(schedule),
    )


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    zero = lambda: jnp.zeros((), jnp.int32)
    return TrainState(zero(), params, optimizer.init(params), zero(), zero())


def apply_gradients(
    state: TrainState,
    grads: Any,
    loss: Float[Array, ""],
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Float[Array, ""]]:
    """One step; returns the new state and the gradient's norm before clipping.

    A step is skipped and counted if the loss or a gradient is not finite. The same
    holds if a parameter or moment would become so. Then parameters and optimizer stay
    bitwise the same. `optax.apply_if_finite` would apply such a step after several of
    them.
    """
    norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    for leaf in _floats((params, opt_state)).values():
        finite &= jnp.isfinite(leaf).all()
    keep = lambda new, old: jnp.where(finite, new, old)
    bad = (~finite).astype(jnp.int32)
    new = TrainState(
        step=state.step + 1,
        params=jax.tree.map(keep, params, state.params),
        opt_state=jax.tree.map(keep, opt_state, state.opt_state),
        skipped=state.skipped + bad,
        skipped_in_row=jnp.where(finite, 0, state.skipped_in_row + 1),
    )
    return new, norm


def non_finite_leaves(tree: Any) -> list[str]:
    """Names of the leaves that hold a NaN or an infinity, such as params/layers/q."""
    # One after the other: many small collectives at once can starve CPU devices.
    return [n for n, x in _floats(tree).items() if not bool(jnp.isfinite(x).all())]


def _floats(tree: Any) -> dict[str, Array]:
    """The leaves of `tree` that can be non-finite, by name."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    }


def abstract_state(params: Params, optimizer: Any, mesh: Mesh) -> TrainState:
    """Shapes and shardings of the training state around abstract parameters."""
    shapes = jax.eval_shape(lambda p: init_state(p, optimizer), params)
    return abstract(shapes, param_shardings(shapes, mesh))


def make_init_state(params: Params, optimizer: Any, mesh: Mesh) -> Program:
    """(params) -> the training state before the first step, with a copy of them.

    A copy, because updates donate the state and the parameters may serve as reference.
    """
    out = shardings_of(abstract_state(params, optimizer, mesh))
    init = lambda p: init_state(jax.tree.map(jnp.copy, p), optimizer)
    return compile_program(init, (params,), out_shardings=out)
