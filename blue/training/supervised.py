"""Supervised fine-tuning: gradients and program."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from blue.inference.scoring import completion_scores
from blue.models import lora
from blue.models.decoder import DecoderConfig, Params
from blue.runtime.programs import Program, rows
from blue.runtime.shapes import Precision, Shapes
from blue.training import losses
from blue.training.optimizers import TrainState
from blue.training.update import compile_update, take_step


def sft_gradients(cfg: DecoderConfig, mesh: Mesh, precision: Precision) -> Any:
    """(trained, frozen, prompt, mask, targets [B G C], mask) -> (loss, gradients)."""

    def loss(
        trained: Params,
        frozen: Params,
        prompt: Array,
        mask: Array,
        tokens: Array,
        keep: Array,
    ) -> Array:
        params = lora.join(frozen, trained)
        scores = completion_scores(
            params, cfg, prompt, mask, tokens,
            mesh=mesh, temperature=1.0, precision=precision,
        )  # fmt: skip
        return losses.sft_loss(scores.logprobs, keep) / jnp.maximum(keep.sum(), 1)

    return jax.value_and_grad(loss)


def make_sft_update(
    cfg: DecoderConfig,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    shapes: Shapes,
    precision: Precision,
) -> Program:
    """(TrainState, frozen, prompt, mask, targets [B G C], mask) -> (TrainState,
    metrics), state donated."""
    gradients = sft_gradients(cfg, mesh, precision)

    def update(state: TrainState, *inputs: Any) -> tuple[TrainState, dict]:
        value, grads = gradients(state.params, *inputs)
        new, metrics = take_step(state, grads, value, optimizer, schedule)
        return new, {"policy/loss": value, **metrics}

    B, P, G, C = shapes
    batch = (
        rows(mesh, (B, P), jnp.int32),
        rows(mesh, (B, P), jnp.bool_),
        rows(mesh, (B, G, C), jnp.int32),
        rows(mesh, (B, G, C), jnp.bool_),
    )
    return compile_update(update, cfg, mesh, optimizer, precision.params, batch)
