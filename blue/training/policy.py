"""GRPO: gradients, not jitted, and the program that applies them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from blue.inference.scoring import completion_scores, split_rows
from blue.models import lora
from blue.models.decoder import DecoderConfig, Params
from blue.runtime.programs import Program, rows
from blue.runtime.shapes import Precision, Shapes
from blue.runtime.sharding import keep_rows
from blue.training import losses
from blue.training.optimizers import TrainState
from blue.training.update import compile_update, take_step


class UpdateBatch(NamedTuple):
    """One rollout batch as the update sees it."""

    prompt: Int[Array, "B P"]
    prompt_mask: Bool[Array, "B P"]
    tokens: Int[Array, "B G C"]
    mask: Bool[Array, "B G C"]
    sampler_logprobs: Float[Array, "B G C"]
    ref_logprobs: Float[Array, "B G C"]
    advantages: Float[Array, "B G"]
    teaching: Bool[Array, "B G"]  # tokens of other completions are not counted


class Objective(NamedTuple):
    """The numbers of GRPO's objective."""

    temperature: float  # the sampling temperature of the log-probabilities
    clip_eps: float  # the ratio is clipped to 1 - clip_eps .. 1 + clip_eps
    kl_coef: float  # of KL(policy || reference)


def grpo_gradients(
    cfg: DecoderConfig,
    mesh: Mesh,
    precision: Precision,
    objective: Objective,
    *,
    batch: int,
    microbatch: int = 0,
) -> Callable[[Params, Params, UpdateBatch], tuple[Any, losses.GRPOSums, Array]]:
    """(trained, frozen, UpdateBatch) -> (gradients, sums over tokens, their count); not
    jitted. `trained` and `frozen` are the two parts of `lora.split`.

    Micro-batches of `microbatch` of the `batch` users (0: all) add up gradients of
    sums. The count of tokens divides them once, so the result equals that of the whole
    batch. The loss is NaN if no group has two finite rewards.
    """
    micro = microbatch or batch
    count = batch // micro

    def loss(
        trained: Params, frozen: Params, b: UpdateBatch, tokens: Array
    ) -> tuple[Array, Any]:
        params = lora.join(frozen, trained)
        scores = completion_scores(
            params, cfg, b.prompt, b.prompt_mask, b.tokens,
            mesh=mesh, temperature=objective.temperature, precision=precision,
        )  # fmt: skip
        sums = losses.grpo_loss(
            scores.logprobs, scores.entropy, b.sampler_logprobs, b.ref_logprobs,
            b.mask, b.advantages,
            clip_eps=objective.clip_eps, kl_coef=objective.kl_coef,
        )  # fmt: skip
        return sums.loss / tokens, sums

    def gradients(
        trained: Params, frozen: Params, whole: UpdateBatch
    ) -> tuple[Any, Any, Array]:
        whole = whole._replace(mask=whole.mask & whole.teaching[:, :, None])
        tokens = jnp.maximum(whole.mask.sum(), 1).astype(jnp.float32)
        grad_of = jax.grad(loss, has_aux=True)
        if count == 1:
            grads, sums = grad_of(trained, frozen, whole, tokens)
        else:

            def add(carry: Any, b: UpdateBatch) -> tuple[Any, Any]:
                grads, sums = grad_of(trained, frozen, keep_rows(b), tokens)
                return jax.tree.map(jnp.add, carry, grads), sums

            zeros = jax.tree.map(jnp.zeros_like, trained)
            batches = jax.tree.map(lambda a: split_rows(a, micro), whole)
            grads, sums = jax.lax.scan(add, zeros, batches)
            gap_max = sums.gap_max.max()
            sums = jax.tree.map(lambda a: a.sum(axis=0), sums)._replace(gap_max=gap_max)
        taught = jnp.where(whole.teaching.any(), sums.loss, jnp.nan)
        return grads, sums._replace(loss=taught), tokens

    return gradients


def make_update(
    cfg: DecoderConfig,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    shapes: Shapes,
    precision: Precision,
    objective: Objective,
    microbatch: int = 0,
) -> Program:
    """(TrainState, frozen, UpdateBatch), state donated -> (TrainState, metrics).

    `frozen` and what the state trains are the two parts of `lora.split`.
    """
    B, P, G, C = shapes
    gradients = grpo_gradients(
        cfg, mesh, precision, objective, batch=B, microbatch=microbatch
    )

    def update(
        state: TrainState, frozen: Params, batch: UpdateBatch
    ) -> tuple[TrainState, dict]:
        grads, sums, tokens = gradients(state.params, frozen, batch)
        new, metrics = take_step(state, grads, sums.loss, optimizer, schedule)
        return new, {
            "policy/loss": sums.loss / tokens,
            "policy/kl": sums.kl / tokens,
            "policy/entropy": sums.entropy / tokens,
            "policy/clip_fraction": sums.clipped / tokens,
            "policy/sampler_gap_mean": sums.gap / tokens,
            "policy/sampler_gap_max": sums.gap_max,
            **metrics,
        }

    batch = UpdateBatch(
        prompt=rows(mesh, (B, P), jnp.int32),
        prompt_mask=rows(mesh, (B, P), jnp.bool_),
        tokens=rows(mesh, (B, G, C), jnp.int32),
        mask=rows(mesh, (B, G, C), jnp.bool_),
        sampler_logprobs=rows(mesh, (B, G, C), jnp.float32),
        ref_logprobs=rows(mesh, (B, G, C), jnp.float32),
        advantages=rows(mesh, (B, G), jnp.float32),
        teaching=rows(mesh, (B, G), jnp.bool_),
    )
    return compile_update(update, cfg, mesh, optimizer, precision.params, (batch,))
