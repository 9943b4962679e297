"""Programs that generate: a copy in the decode layout, prefill, decoding, slots.

A training step uses `make_relayout` once, then `make_sample`. Many prompts of different
lengths use slots instead: continuous batching.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, UInt32

from blue.inference import rollout
from blue.models import decoder, decoding, lora
from blue.models.decoder import DecoderConfig, Params
from blue.models.params import abstract_params
from blue.runtime.programs import Program, compile_program, rows, shardings_of
from blue.runtime.shapes import Precision, Sampling, Shapes
from blue.runtime.sharding import (
    abstract,
    by_batch,
    gather,
    keep_kv,
    kv_shardings,
    param_shardings,
    replicated,
)


@functools.cache
def make_relayout(cfg: DecoderConfig, mesh: Mesh, precision: Precision) -> Program:
    """(params) -> a copy in the decode layout and dtype; once a step.

    There each layer has arrays of its own, sharded over `tensor` only. Adapters are
    merged, so sampling uses the plain model.
    """
    dtype = precision.compute
    plain = abstract_params(lora.without(cfg), mesh, precision.params)
    out = shardings_of(abstract_decode_params(plain, mesh, dtype))

    def run(params: Params) -> Params:
        cast = lambda tree, to: jax.tree.map(lambda x: x.astype(to), tree)
        if cfg.lora:  # merged in float32, rounded once, to `dtype`
            params = lora.merge(cast(params, jnp.float32), cfg)
        # Stacks are gathered, not layers: for the few rows of a layer's shard the TPU
        # compiler makes all-reduces, which send everything twice.
        return decoding.unstack_layers(cast(gather(params, dtype), dtype))

    args = (abstract_params(cfg, mesh, precision.params),)
    return compile_program(run, args, out_shardings=out)


def abstract_decode_params(params: Params, mesh: Mesh, dtype: str) -> Params:
    """Shapes and shardings of what `make_relayout` returns, for a plain model."""
    cast = lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype))
    shapes = jax.eval_shape(decoding.unstack_layers, jax.tree.map(cast, params))
    return abstract(shapes, param_shardings(shapes, mesh, axes=("tensor",)))


def sampler_model(
    params: Params,
    cfg: DecoderConfig,
    *,
    group: int = 1,
    length: int = 0,
    dtype: Any,
) -> rollout.SamplerModel:
    """A decoder as the functions that `rollout.sample` takes.

    params: in the decode layout. There is room for `group` completions of `length`
    tokens for each prompt.
    """
    head = decoder.head(params)

    def prefill(prompt: Array, mask: Array) -> tuple[Array, Any]:
        hidden, kv = decoding.prefill(params, cfg, prompt, mask, dtype=dtype)
        return hidden, (mask, kv)

    def begin(kept: tuple[Array, Any]) -> Any:
        mask, kv = kept
        cache = decoding.init_cache(cfg, mask.shape[0], group, length, dtype)
        return mask, kv, keep_kv(cache, cfg.num_kv_heads)

    def step(tokens: Array, slot: Array, state: Any) -> tuple[Array, Any]:
        mask, kv, cache = state
        hidden, cache = decoding.decode_step(
            params, cfg, tokens, slot, mask, kv, cache, dtype=dtype
        )
        return hidden, (mask, kv, cache)

    def logits(hidden: Array) -> Array:
        return jnp.einsum(
            "BGD,VD->BGV", hidden, head, preferred_element_type=jnp.float32
        )

    return rollout.SamplerModel(prefill, begin, step, logits)


def _sampling_key(seeds: UInt32[Array, " 3"]) -> Array:
    """The key of (seed, stage, step)."""
    key = jax.random.key(seeds[0])
    return jax.random.fold_in(jax.random.fold_in(key, seeds[1]), seeds[2])


@functools.cache
def make_prefill(cfg: DecoderConfig, mesh: Mesh, shapes: Shapes, dtype: str) -> Program:
    """(decode params, prompt, mask) -> (hidden [B D], what `make_decode` takes).

    shapes: of prompts alone.
    """

    def run(params: Params, prompt: Array, mask: Array) -> Any:
        return sampler_model(params, cfg, dtype=jnp.dtype(dtype)).prefill(prompt, mask)

    args = (
        abstract_decode_params(abstract_params(cfg, mesh, dtype), mesh, dtype),
        rows(mesh, (shapes.batch, shapes.prompt), jnp.int32),
        rows(mesh, (shapes.batch, shapes.prompt), jnp.bool_),
    )
    out = shardings_of(abstract_prefilled(cfg, mesh, shapes, dtype))
    return compile_program(run, args, out_shardings=out)


def abstract_prefilled(
    cfg: DecoderConfig, mesh: Mesh, shapes: Shapes, dtype: str
) -> Any:
    """Shapes and shardings of what `make_prefill` returns."""
    B, P = shapes.batch, shapes.prompt

    def prefilled() -> Any:
        kv = decoding.init_cache(cfg, B, 1, P, dtype)
        return jnp.zeros((B, cfg.width), dtype), (jnp.zeros((B, P), bool), kv)

    shapes = jax.eval_shape(prefilled)
    return abstract(shapes, kv_shardings(shapes, mesh))


@functools.cache
def make_decode(
    cfg: DecoderConfig, mesh: Mesh, shapes: Shapes, sampling: Sampling, dtype: str
) -> Program:
    """(decode params, hidden, prompts' cache, example ids, [seed, stage, step]) ->
    Rollout."""
    B, _, G, C = shapes

    def run(params: Params, hidden: Array, kept: Any, ids: Array, seeds: Array) -> Any:
        return rollout.sample(
            sampler_model(params, cfg, group=G, length=C, dtype=jnp.dtype(dtype)),
            hidden,
            kept,
            _sampling_key(seeds),
            ids,
            group_size=G,
            max_tokens=C,
            sampling=sampling,
        )

    args = (
        abstract_decode_params(abstract_params(cfg, mesh, dtype), mesh, dtype),
        *abstract_prefilled(cfg, mesh, shapes, dtype),
        rows(mesh, (B,), jnp.int32),
        jax.ShapeDtypeStruct((3,), jnp.uint32, sharding=replicated(mesh)),
    )
    return compile_program(run, args, out_shardings=by_batch(mesh))


class SamplePrograms(NamedTuple):
    """The two programs that write completions, one after the other."""

    prefill: Program
    decode: Program

    def __call__(
        self, params: Params, prompt: Any, mask: Any, ids: Any, seeds: Any
    ) -> rollout.Rollout:
        """G completions of each prompt; seeds: [seed, stage, step]."""
        hidden, kept = self.prefill(params, prompt, mask)
        return self.decode(params, hidden, kept, ids, seeds)


def make_sample(
    cfg: DecoderConfig, mesh: Mesh, shapes: Shapes, sampling: Sampling, dtype: str
) -> SamplePrograms:
    """(decode params, prompt, mask, example ids, [seed, stage, step]) -> Rollout."""
    return SamplePrograms(
        make_prefill(cfg, mesh, shapes.prompts(), dtype),
        make_decode(cfg, mesh, shapes, sampling, dtype),
    )


def _new_slots(cfg: DecoderConfig, shapes: Shapes, dtype: str) -> rollout.Slots:
    """Free slots, all zero, of the state that `sampler_model` keeps.

    shapes: rows decoded at a time, the longest prompt, the longest completion.
    """
    B, P, _, C = shapes
    kv = decoding.init_cache(cfg, B, 1, P, dtype)
    cache = decoding.init_cache(cfg, B, 1, C, dtype)
    state = (jnp.zeros((B, P), bool), kv, cache)
    return rollout.new_slots(jnp.zeros((B, cfg.width), dtype), state, C)


def abstract_slots(
    cfg: DecoderConfig, mesh: Mesh, shapes: Shapes, dtype: str
) -> rollout.Slots:
    """Shapes and shardings of the state of continuous batching."""
    slots = jax.eval_shape(lambda: _new_slots(cfg, shapes, dtype))
    return abstract(slots, kv_shardings(slots, mesh))


@functools.cache
def make_new_slots(
    cfg: DecoderConfig, mesh: Mesh, shapes: Shapes, dtype: str
) -> Program:
    """() -> Slots, all of them free."""
    out = shardings_of(abstract_slots(cfg, mesh, shapes, dtype))
    return compile_program(
        lambda: _new_slots(cfg, shapes, dtype), (), out_shardings=out
    )


@functools.cache
def make_refill(
    cfg: DecoderConfig,
    mesh: Mesh,
    shapes: Shapes,
    new: Shapes,
    dtype: str,
) -> Program:
    """(decode params, Slots, prompt, mask, example ids, rows), slots donated -> Slots.

    new: of the prompts of one refill, which may be shorter than those of `shapes`.
    """

    def run(params: Params, slots: rollout.Slots, *batch: Array) -> rollout.Slots:
        room = {"length": shapes.completion, "dtype": jnp.dtype(dtype)}
        return rollout.refill(sampler_model(params, cfg, **room), slots, *batch)

    slots = abstract_slots(cfg, mesh, shapes, dtype)
    args = (
        abstract_decode_params(abstract_params(cfg, mesh, dtype), mesh, dtype),
        slots,
        rows(mesh, (new.batch, new.prompt), jnp.int32),
        rows(mesh, (new.batch, new.prompt), jnp.bool_),
        rows(mesh, (new.batch,), jnp.int32),
        rows(mesh, (new.batch,), jnp.int32),
    )
    return compile_program(run, args, out_shardings=shardings_of(slots), donate=(1,))


@functools.cache
def make_advance(
    cfg: DecoderConfig,
    mesh: Mesh,
    shapes: Shapes,
    sampling: Sampling,
    dtype: str,
) -> Program:
    """(decode params, Slots, free rows wanted, [seed, stage, step]), slots donated ->
    (Slots, steps taken)."""

    def run(params: Params, slots: rollout.Slots, num_free: Array, seeds: Array):
        room = {"length": shapes.completion, "dtype": jnp.dtype(dtype)}
        model = sampler_model(params, cfg, **room)
        return rollout.advance(model, slots, _sampling_key(seeds), num_free, sampling)

    slots = abstract_slots(cfg, mesh, shapes, dtype)
    whole = replicated(mesh)
    args = (
        abstract_decode_params(abstract_params(cfg, mesh, dtype), mesh, dtype),
        slots,
        jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
        jax.ShapeDtypeStruct((3,), jnp.uint32, sharding=whole),
    )
    out = (shardings_of(slots), whole)
    return compile_program(run, args, out_shardings=out, donate=(1,))
