"""What the update programs share."""

from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh
from jaxtyping import Array

from blue.models import lora
from blue.models.decoder import DecoderConfig
from blue.models.params import abstract_params
from blue.runtime.programs import Program, compile_program, shardings_of
from blue.runtime.sharding import replicated
from blue.training.optimizers import TrainState, abstract_state, apply_gradients


def compile_update(
    update: Callable,
    cfg: DecoderConfig,
    mesh: Mesh,
    optimizer: Any,
    params_dtype: str,
    batch: tuple,
) -> Program:
    """`update` as a program: (state, frozen parameters, *batch), state donated.

    What it returns is (state, metrics).
    """
    frozen, trained = lora.split(abstract_params(cfg, mesh, params_dtype))
    state = abstract_state(trained, optimizer, mesh)
    out, args = (shardings_of(state), replicated(mesh)), (state, frozen, *batch)
    return compile_program(update, args, out_shardings=out, donate=(0,))


def take_step(
    state: TrainState, grads: Any, loss: Array, optimizer: Any, schedule: Any
) -> tuple[TrainState, dict]:
    """The state after one step, and what every update reports of it."""
    new, norm = apply_gradients(state, grads, loss, optimizer)
    return new, {
        "optim/grad_norm": norm,
        "optim/lr": schedule(state.step),
        "optim/skipped": new.skipped,
        "skipped_in_row": new.skipped_in_row,
    }
