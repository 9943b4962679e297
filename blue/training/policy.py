"""Programs that learn: GRPO, supervised fine-tuning and the encoder's contrastive step.

Each is two functions. `*_gradients` is pure, from a state and a batch to gradients, and
not jitted. A program around it applies them and donates the state.
"""

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
from blue.runtime.sharding import keep_rows
from blue.training import losses
from blue.training.optimizers import TrainState, apply_gradients
from blue.training.update import compile_update


class UpdateBatch(NamedTuple):
    """One rollout batch as the update sees it."""

    prompt: Int[Array, "B P"]
    prompt_mask: Bool[Array, "B P"]
    tokens: Int[Array, "B G C"]
    mask: Bool[Array, "B G C"]
    sampler_logprobs: Float[Array, "B G C"]
    ref_logprobs: Float[Array, "B G C"]
    advantages: Float[Array, "B G"]
    teaching: Bool[Array, "B G"]  # the others' tokens are in no sum and no count


def grpo_gradients(
    cfg: DecoderConfig,
    mesh: Mesh,
    *,
    batch_size: int,
    microbatch_size: int,
    temperature: float,
    clip_eps: float,
    kl_coef: float,
    dtype: str,
    remat: str,
) -> Callable[[Params, Params, UpdateBatch], tuple[Any, losses.GRPOSums, Array]]:
    """(trained, frozen, UpdateBatch) -> (gradients, sums over tokens, their count); not
    jitted. `trained` and `frozen` are the two parts of `lora.split`.

    Micro-batches of `microbatch_size` users add up gradients of sums; the count of
    tokens divides once, so that they equal the whole batch. A batch in which no
    completion teaches (no two rewards of a group are finite) has the loss NaN.
    """
    micro = microbatch_size or batch_size
    count = batch_size // micro

    def loss(
        trained: Params, frozen: Params, b: UpdateBatch, tokens: Array
    ) -> tuple[Array, Any]:
        params = lora.join(frozen, trained)
        scores = completion_scores(
            params, cfg, b.prompt, b.prompt_mask, b.tokens,
            mesh=mesh, temperature=temperature, dtype=dtype, remat=remat,
        )  # fmt: skip
        sums = losses.grpo_loss(
            scores.logprobs, scores.entropy, b.sampler_logprobs, b.ref_logprobs,
            b.mask, b.advantages, clip_eps=clip_eps, kl_coef=kl_coef,
        )  # fmt: skip
        return sums.loss / tokens, sums

    def gradients(
        trained: Params, frozen: Params, batch: UpdateBatch
    ) -> tuple[Any, Any, Array]:
        batch = batch._replace(mask=batch.mask & batch.teaching[:, :, None])
        tokens = jnp.maximum(batch.mask.sum(), 1).astype(jnp.float32)
        grad_of = jax.grad(loss, has_aux=True)
        if count == 1:
            grads, sums = grad_of(trained, frozen, batch, tokens)
        else:

            def add(carry: Any, b: UpdateBatch) -> tuple[Any, Any]:
                grads, sums = grad_of(trained, frozen, keep_rows(b), tokens)
                return jax.tree.map(jnp.add, carry, grads), sums

            zeros = jax.tree.map(jnp.zeros_like, trained)
            batches = jax.tree.map(lambda a: split_rows(a, micro), batch)
            grads, sums = jax.lax.scan(add, zeros, batches)
            gap_max = sums.gap_max.max()
            sums = jax.tree.map(lambda a: a.sum(axis=0), sums)._replace(gap_max=gap_max)
        taught = jnp.where(batch.teaching.any(), sums.loss, jnp.nan)
        return grads, sums._replace(loss=taught), tokens

    return gradients


def make_update(
    cfg: DecoderConfig,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    batch_size: int,
    microbatch_size: int,
    prompt_tokens: int,
    group_size: int,
    max_tokens: int,
    temperature: float,
    clip_eps: float,
    kl_coef: float,
    params_dtype: str,
    dtype: str,
    remat: str,
) -> Program:
    """(TrainState, frozen, UpdateBatch), state donated -> (TrainState, metrics).

    `frozen` and what the state trains are the two parts of `lora.split`.
    """
    gradients = grpo_gradients(
        cfg, mesh, batch_size=batch_size, microbatch_size=microbatch_size,
        temperature=temperature, clip_eps=clip_eps, kl_coef=kl_coef, dtype=dtype,
        remat=remat,
    )  # fmt: skip

    def update(
        state: TrainState, frozen: Params, batch: UpdateBatch
    ) -> tuple[TrainState, dict]:
        grads, sums, tokens = gradients(state.params, frozen, batch)
        new, norm = apply_gradients(state, grads, sums.loss, optimizer)
        return new, {
            "policy/loss": sums.loss / tokens,
            "policy/kl": sums.kl / tokens,
            "policy/entropy": sums.entropy / tokens,
            "policy/clip_fraction": sums.clipped / tokens,
            "policy/sampler_gap_mean": sums.gap / tokens,
            "policy/sampler_gap_max": sums.gap_max,
            "optim/grad_norm": norm,
            "optim/lr": schedule(state.step),
            "optim/skipped": new.skipped,
            "skipped_in_row": new.skipped_in_row,
        }

    B, G, P, C = batch_size, group_size, prompt_tokens, max_tokens
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
    return compile_update(update, cfg, mesh, optimizer, params_dtype, (batch,))
