"""Every jitted program, built in one place with its shardings; nothing else is jitted.

A builder takes shapes (abstract arrays) and returns an executable, so a stage compiles
all it needs before its first step and nothing can recompile in the loop. Compilations
run side by side; `wait` is the barrier before the loop. Inference programs are shared
by the stages of a process. Arguments lie on the mesh as `sharding` says: parameters by
rule, batches by rows.
"""

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt32

from blue import (
    advantages,
    compile_cache,
    losses,
    preemption,
    rewards,
    rollout,
    watchdog,
)
from blue.models import decoder, encoder, lora
from blue.models.decoder import DecoderConfig, Params
from blue.optimizers import TrainState, apply_gradients, init_state
from blue.sharding import (
    BATCH,
    abstract,
    by_batch,
    keep_kv,
    keep_rows,
    kv_shardings,
    param_shardings,
    replicated,
)

log = logging.getLogger("blue")
LOGITS_BUDGET = 2**26  # float32 logits of one head chunk a device: 256 MiB

# Of the whole process, for `speed/compiles`; those out of compile_cache are among them.
compiles = {"count": 0, "seconds": 0.0}


def _count_compile(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        compiles["count"] += 1
        compiles["seconds"] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_count_compile)


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


_pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))
_pending: list[Future] = []
_only_described = False


class Program:
    """A program for arguments of given shapes and shardings; compiled in a thread."""

    def __init__(self, jitted: Any, args: tuple, mesh: Mesh | None) -> None:
        self.args = args
        self._jitted, self._mesh = jitted, mesh
        self._compiled = None if _only_described else _pool.submit(self.compile)
        if self._compiled:
            _pending.append(self._compiled)

    def __call__(self, *arguments: Any) -> Any:
        watchdog.beat()
        assert self._compiled, "only described"
        return self._compiled.result()(*arguments)

    @property
    def chips(self) -> int:
        """How many devices it runs on."""
        return self._mesh.size if self._mesh else 1

    def compile(self) -> Any:
        """The executable; whoever calls it again compiles again."""
        return self.trace().lower().compile()

    def trace(self) -> Any:
        """The program as jax sees it: its jaxpr."""
        # where sharding.keep_rows and gather find it
        on_mesh = jax.set_mesh(self._mesh) if self._mesh else contextlib.nullcontext()
        with on_mesh:
            return self._jitted.trace(*self.args)


@contextlib.contextmanager
def described() -> Iterator[None]:
    """Inside, programs are built and not compiled: for `plan`, which does so itself."""
    global _only_described
    _only_described = True
    try:
        yield
    finally:
        _only_described = False


def compile_program(
    fn: Callable, args: tuple, *, out_shardings: Any = None, donate: tuple = ()
) -> Program:
    """Starts to compile fn for abstract arguments that carry their shardings."""
    jitted = jax.jit(fn, out_shardings=out_shardings, donate_argnums=donate)
    leaf = jax.tree.leaves((args, out_shardings))[0]
    # arrays of one device may come without a mesh
    mesh = getattr(getattr(leaf, "sharding", leaf), "mesh", None)
    return Program(jitted, args, mesh)


def wait() -> None:
    """Returns when all programs are compiled; raises what one of them raised."""
    started, count = time.monotonic(), len(_pending)
    with watchdog.phase("compile"):
        while _pending:
            _pending.pop().result()
            watchdog.beat()
    preemption.leave_if_requested("stopped after compilation")
    seconds = time.monotonic() - started
    log.info("waited %.1f s for the last of %d programs to compile", seconds, count)
    read = compile_cache.hits
    log.info(
        "since the start %d compiled (%.1f s of work), %d read from the cache (%.1f s)",
        compiles["count"] - read["count"],
        compiles["seconds"] - read["seconds"],
        read["count"],
        read["seconds"],
    )


def rows(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> Any:
    """An abstract batch, its leading axis split over the mesh; stands for an array."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=by_batch(mesh))


@functools.cache
def abstract_params(cfg: DecoderConfig, mesh: Mesh, dtype: str) -> Params:
    """Shapes and training shardings of a model's parameters."""
    init = lambda key: decoder.init_params(cfg, key, dtype)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return abstract(shapes, param_shardings(shapes, mesh))


def abstract_state(params: Params, optimizer: Any, mesh: Mesh) -> TrainState:
    """Shapes and shardings of the training state around abstract parameters."""
    shapes = jax.eval_shape(lambda p: init_state(p, optimizer), params)
    return abstract(shapes, param_shardings(shapes, mesh))


def _shardings(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, tree)


def head_chunk(cfg: DecoderConfig, row_count: int, mesh: Mesh) -> int:
    """Completion positions whose logits exist at once."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    per_position = -(-row_count // shards) * cfg.vocab_size
    return max(1, LOGITS_BUDGET // per_position)


# --- parameters


@functools.cache
def make_init(cfg: DecoderConfig, mesh: Mesh, dtype: str) -> Program:
    """(key data) -> random parameters, born on their shards."""
    shapes = abstract_params(cfg, mesh, dtype)
    init = lambda seed: decoder.init_params(cfg, jax.random.key(seed), dtype)
    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=replicated(mesh))
    return compile_program(init, (seed,), out_shardings=_shardings(shapes))


@functools.cache
def make_adapters(cfg: DecoderConfig, mesh: Mesh, dtype: str) -> Program:
    """(key data) -> fresh adapters for the plain model, born on their shards."""
    shapes = lora.split(abstract_params(cfg, mesh, dtype))[1]

    def init(seed: Array) -> Params:  # what is not returned is not computed
        return lora.split(decoder.init_params(cfg, jax.random.key(seed), dtype))[1]

    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=replicated(mesh))
    return compile_program(init, (seed,), out_shardings=_shardings(shapes))


def make_merge(cfg: DecoderConfig, params: Params) -> Program:
    """(params with adapters) -> the plain model's; `params` are abstract, sharded."""
    out = _shardings(lora.split(params)[0])
    return compile_program(lambda p: lora.merge(p, cfg), (params,), out_shardings=out)


def make_init_state(params: Params, optimizer: Any, mesh: Mesh) -> Program:
    """(params) -> the training state before the first step, with a copy of them.

    A copy, because updates donate the state and the start may stay as reference.
    """
    out = _shardings(abstract_state(params, optimizer, mesh))
    init = lambda p: init_state(jax.tree.map(jnp.copy, p), optimizer)
    return compile_program(init, (params,), out_shardings=out)


@functools.cache
def make_relayout(
    cfg: DecoderConfig, mesh: Mesh, *, params_dtype: str, dtype: str
) -> Program:
    """(params) -> a copy in the decode layout and dtype: once a step, never a token.

    Adapters are merged, so that sampling knows the plain model alone.
    """
    plain = abstract_params(lora.without(cfg), mesh, params_dtype)
    out = _shardings(abstract_decode_params(plain, mesh, dtype))

    def run(params: Params) -> Params:
        cast = lambda tree, to: jax.tree.map(lambda x: x.astype(to), tree)
        if cfg.lora:  # in float32, to be rounded once, to `dtype`
            params = lora.merge(cast(params, jnp.float32), cfg)
        return cast(params, dtype)

    args = (abstract_params(cfg, mesh, params_dtype),)
    return compile_program(run, args, out_shardings=out)


def abstract_decode_params(params: Params, mesh: Mesh, dtype: str) -> Params:
    """Shapes and shardings of what `make_relayout` returns, for a plain model."""
    cast = lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype))
    shapes = jax.tree.map(cast, params)
    return abstract(shapes, param_shardings(shapes, mesh, axes=("tensor",)))


# --- the profiler


def sampler_model(params: Params, cfg: DecoderConfig, **sizes: Any) -> rollout.Model:
    """A decoder as the functions that `rollout.sample` takes."""
    layers = [decoder.layer_params(params, n) for n in range(cfg.num_layers)]
    group, length, dtype = sizes["group"], sizes["length"], sizes["dtype"]
    head = decoder.head(params)

    def prefill(prompt: Array, mask: Array) -> tuple[Array, Any]:
        hidden, kv = decoder.prefill(params, cfg, prompt, mask, dtype=dtype)
        return hidden, (mask, kv)

    def begin(kept: tuple[Array, Any]) -> Any:
        mask, kv = kept
        cache = decoder.init_cache(cfg, mask.shape[0], group, length, dtype)
        return mask, kv, keep_kv(cache)

    def step(tokens: Array, slot: Array, state: Any) -> tuple[Array, Any]:
        mask, kv, cache = state
        hidden, cache = decoder.decode_step(
            params, layers, cfg, tokens, slot, mask, kv, cache, dtype=dtype
        )
        return hidden, (mask, kv, cache)

    def logits(hidden: Array) -> Array:
        return jnp.einsum(
            "BGD,VD->BGV", hidden, head, preferred_element_type=jnp.float32
        )

    return rollout.Model(prefill, begin, step, logits)


def _sampling_key(seeds: UInt32[Array, " 3"]) -> Array:
    """The key of (seed, stage, step)."""
    key = jax.random.key(seeds[0])
    return jax.random.fold_in(jax.random.fold_in(key, seeds[1]), seeds[2])


@functools.cache
def make_prefill(
    cfg: DecoderConfig,
    mesh: Mesh,
    *,
    batch_size: int,
    prompt_tokens: int,
    dtype: str,
) -> Program:
    """(decode params, prompt, mask) -> (hidden [B D], what `make_decode` takes)."""

    def run(params: Params, prompt: Array, mask: Array) -> Any:
        sizes = {"group": 1, "length": 0, "dtype": jnp.dtype(dtype)}
        return sampler_model(params, cfg, **sizes).prefill(prompt, mask)

    args = (
        abstract_decode_params(abstract_params(cfg, mesh, dtype), mesh, dtype),
        rows(mesh, (batch_size, prompt_tokens), jnp.int32),
        rows(mesh, (batch_size, prompt_tokens), jnp.bool_),
    )
    out = _shardings(abstract_prefilled(cfg, mesh, batch_size, prompt_tokens, dtype))
    return compile_program(run, args, out_shardings=out)


def abstract_prefilled(
    cfg: DecoderConfig, mesh: Mesh, batch_size: int, prompt_tokens: int, dtype: str
) -> Any:
    """Shapes and shardings of what `make_prefill` returns."""
    B, P = batch_size, prompt_tokens

    def prefilled() -> Any:
        kv = jax.tree.map(lambda a: a[:, 0], decoder.init_cache(cfg, B, 1, P, dtype))
        return jnp.zeros((B, cfg.width), dtype), (jnp.zeros((B, P), bool), kv)

    shapes = jax.eval_shape(prefilled)
    return abstract(shapes, kv_shardings(shapes, mesh))


@functools.cache
def make_decode(
    cfg: DecoderConfig,
    mesh: Mesh,
    *,
    batch_size: int,
    prompt_tokens: int,
    group_size: int,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    end_ids: tuple[int, ...],
    pad_id: int,
    dtype: str,
) -> Program:
    """(decode params, hidden, kept of the prompts, example ids, [seed, stage, step]) ->
    Rollout."""

    def run(params: Params, hidden: Array, kept: Any, ids: Array, seeds: Array) -> Any:
        return rollout.sample(
            sampler_model(
                params, cfg, group=group_size, length=max_tokens, dtype=jnp.dtype(dtype)
            ),
            hidden,
            kept,
            _sampling_key(seeds),
            ids,
            group_size=group_size,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            end_ids=end_ids,
            pad_id=pad_id,
        )

    args = (
        abstract_decode_params(abstract_params(cfg, mesh, dtype), mesh, dtype),
        *abstract_prefilled(cfg, mesh, batch_size, prompt_tokens, dtype),
        rows(mesh, (batch_size,), jnp.int32),
        jax.ShapeDtypeStruct((3,), jnp.uint32, sharding=replicated(mesh)),
    )
    return compile_program(run, args, out_shardings=by_batch(mesh))


def make_sample(
    cfg: DecoderConfig,
    mesh: Mesh,
    *,
    batch_size: int,
    prompt_tokens: int,
    dtype: str,
    **options: Any,
) -> Callable[..., rollout.Rollout]:
    """(decode params, prompt, mask, example ids, [seed, stage, step]) -> Rollout.

    Prefill and decoding are programs of their own; options: those of `make_decode`.
    """
    sizes = {"batch_size": batch_size, "prompt_tokens": prompt_tokens, "dtype": dtype}
    prefill = make_prefill(cfg, mesh, **sizes)
    decode = make_decode(cfg, mesh, **sizes, **options)

    def sample(
        params: Params, prompt: Any, mask: Any, ids: Any, seeds: Any
    ) -> rollout.Rollout:
        hidden, kept = prefill(params, prompt, mask)
        return decode(params, hidden, kept, ids, seeds)

    return sample


class SlotShapes(NamedTuple):
    """Sizes of the programs of continuous batching."""

    batch_size: int  # rows decoded at a time
    prompt_tokens: int  # of the longest prompt
    max_tokens: int


def _new_slots(cfg: DecoderConfig, shapes: SlotShapes, dtype: str) -> rollout.Slots:
    """Free slots, all zero, of the state that `sampler_model` keeps."""
    B, P, C = shapes
    kv = jax.tree.map(lambda a: a[:, 0], decoder.init_cache(cfg, B, 1, P, dtype))
    cache = decoder.init_cache(cfg, B, 1, C, dtype)
    state = (jnp.zeros((B, P), bool), kv, cache)
    return rollout.new_slots(jnp.zeros((B, cfg.width), dtype), state, C)


def abstract_slots(
    cfg: DecoderConfig, mesh: Mesh, shapes: SlotShapes, dtype: str
) -> rollout.Slots:
    """Shapes and shardings of the state of continuous batching."""
    slots = jax.eval_shape(lambda: _new_slots(cfg, shapes, dtype))
    return abstract(slots, kv_shardings(slots, mesh))


@functools.cache
def make_new_slots(
    cfg: DecoderConfig, mesh: Mesh, shapes: SlotShapes, dtype: str
) -> Program:
    """() -> Slots, all of them free."""
    out = _shardings(abstract_slots(cfg, mesh, shapes, dtype))
    return compile_program(
        lambda: _new_slots(cfg, shapes, dtype), (), out_shardings=out
    )


@functools.cache
def make_refill(
    cfg: DecoderConfig,
    mesh: Mesh,
    shapes: SlotShapes,
    *,
    refill_size: int,
    prompt_tokens: int,
    dtype: str,
) -> Program:
    """(decode params, Slots, prompt, mask, example ids, rows), slots donated -> Slots.

    `refill_size` prompts at a time, padded to `prompt_tokens`.
    """

    def run(params: Params, slots: rollout.Slots, *new: Array) -> rollout.Slots:
        sizes = {"group": 1, "length": shapes.max_tokens, "dtype": jnp.dtype(dtype)}
        return rollout.refill(sampler_model(params, cfg, **sizes), slots, *new)

    slots = abstract_slots(cfg, mesh, shapes, dtype)
    args = (
        abstract_decode_params(abstract_params(cfg, mesh, dtype), mesh, dtype),
        slots,
        rows(mesh, (refill_size, prompt_tokens), jnp.int32),
        rows(mesh, (refill_size, prompt_tokens), jnp.bool_),
        rows(mesh, (refill_size,), jnp.int32),
        rows(mesh, (refill_size,), jnp.int32),
    )
    return compile_program(run, args, out_shardings=_shardings(slots), donate=(1,))


@functools.cache
def make_advance(
    cfg: DecoderConfig,
    mesh: Mesh,
    shapes: SlotShapes,
    *,
    temperature: float,
    end_ids: tuple[int, ...],
    dtype: str,
) -> Program:
    """(decode params, Slots, free rows wanted, [seed, stage, step]), slots donated ->
    (Slots, steps taken)."""

    def run(params: Params, slots: rollout.Slots, num_free: Array, seeds: Array):
        sizes = {"group": 1, "length": shapes.max_tokens, "dtype": jnp.dtype(dtype)}
        return rollout.advance(
            sampler_model(params, cfg, **sizes),
            slots,
            _sampling_key(seeds),
            num_free,
            temperature=temperature,
            end_ids=end_ids,
        )

    slots = abstract_slots(cfg, mesh, shapes, dtype)
    whole = replicated(mesh)
    args = (
        abstract_decode_params(abstract_params(cfg, mesh, dtype), mesh, dtype),
        slots,
        jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
        jax.ShapeDtypeStruct((3,), jnp.uint32, sharding=whole),
    )
    out = (_shardings(slots), whole)
    return compile_program(run, args, out_shardings=out, donate=(1,))


def _completion_scores(
    params: Params,
    cfg: DecoderConfig,
    prompt: Array,
    prompt_mask: Array,
    tokens: Array,
    *,
    mesh: Mesh,
    temperature: float,
    dtype: str,
    remat: str,
) -> losses.TokenScores:
    params = decoder.gather_tables(params, jnp.dtype(dtype))
    hidden = decoder.group_forward(
        params, cfg, prompt, prompt_mask, tokens, dtype=jnp.dtype(dtype), remat=remat
    )
    chunk = head_chunk(cfg, tokens.shape[0] * tokens.shape[1], mesh)
    score = functools.partial(
        losses.token_logprobs, temperature=temperature, chunk=chunk
    )
    # Each device goes through its own rows: the head's gradient, as large as the head,
    # is summed over devices once and not for every chunk.
    by_device = jax.shard_map(
        score,
        in_specs=(BATCH, BATCH, PartitionSpec()),
        out_specs=BATCH,
        axis_names={*BATCH[0]},
        mesh=mesh,
        check_vma=False,  # else the sum moves into the loop over chunks
    )
    return by_device(hidden, tokens, decoder.head(params))


def _split(rows: Array, size: int) -> Array:
    """[B ...] -> [B / size, size, ...]: row b goes to part b % (B / size), so every
    device works on every part."""
    count = rows.shape[0] // size
    return jnp.swapaxes(rows.reshape(size, count, *rows.shape[1:]), 0, 1)


@functools.cache
def make_completion_logprobs(
    cfg: DecoderConfig,
    mesh: Mesh,
    *,
    batch_size: int,
    prompt_tokens: int,
    group_size: int,
    max_tokens: int,
    temperature: float,
    params_dtype: str,
    dtype: str,
    microbatch_size: int = 0,
) -> Program:
    """(params, prompt, mask, tokens [B G C]) -> log-probabilities [B G C].

    The reference pass, and the reader's likelihood of option titles. It goes through
    `microbatch_size` prompts at a time; 0: all.
    """
    micro = microbatch_size or batch_size

    def run(params: Params, prompt: Array, mask: Array, tokens: Array) -> Array:
        def score(batch: tuple[Array, ...]) -> Array:
            return _completion_scores(
                params, cfg, *keep_rows(batch),
                mesh=mesh, temperature=temperature, dtype=dtype, remat="",
            ).logprobs  # fmt: skip

        batch = (prompt, mask, tokens)
        if micro == batch_size:
            return score(batch)
        out = jax.lax.map(score, jax.tree.map(lambda a: _split(a, micro), batch))
        return jnp.swapaxes(out, 0, 1).reshape(tokens.shape)

    args = (
        abstract_params(cfg, mesh, params_dtype),
        rows(mesh, (batch_size, prompt_tokens), jnp.int32),
        rows(mesh, (batch_size, prompt_tokens), jnp.bool_),
        rows(mesh, (batch_size, group_size, max_tokens), jnp.int32),
    )
    return compile_program(run, args, out_shardings=by_batch(mesh))


@functools.cache
def make_letter_logits(
    cfg: DecoderConfig,
    mesh: Mesh,
    *,
    batch_size: int,
    prompt_tokens: int,
    letter_ids: tuple[int, ...],
    params_dtype: str,
    dtype: str,
) -> Program:
    """(params, question, mask) -> logits of the option letters at the answer [B O]."""
    letters = jnp.asarray(letter_ids)

    def run(params: Params, tokens: Array, mask: Array) -> Array:
        params = decoder.gather_tables(params, jnp.dtype(dtype))
        hidden = decoder.forward(params, cfg, tokens, mask, dtype=jnp.dtype(dtype))
        head = decoder.head(params)[letters].astype(hidden.dtype)
        return jnp.einsum(
            "BD,OD->BO", hidden[:, -1], head, preferred_element_type=jnp.float32
        )

    args = (
        abstract_params(cfg, mesh, params_dtype),
        rows(mesh, (batch_size, prompt_tokens), jnp.int32),
        rows(mesh, (batch_size, prompt_tokens), jnp.bool_),
    )
    return compile_program(run, args, out_shardings=by_batch(mesh))


def make_rewards(
    mesh: Mesh,
    inputs: rewards.RewardInputs,
    *,
    weights: dict[str, float],
    options: dict[str, dict],
) -> Program:
    """(RewardInputs) -> (advantages [B G], which of them teach [B G], total [B G],
    {reward: [B G]})."""

    def run(x: rewards.RewardInputs) -> tuple[Array, Array, Array, dict[str, Array]]:
        total, parts = rewards.combine(x, weights, options)
        teaching = advantages.teaching(total)
        return advantages.group_advantages(total), teaching, total, parts

    return compile_program(run, (inputs,), out_shardings=by_batch(mesh))


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
        scores = _completion_scores(
            params, cfg, b.prompt, b.prompt_mask, b.tokens,
            mesh=mesh, temperature=temperature, dtype=dtype, remat=remat,
        )  # fmt: skip
        sums = losses.grpo_loss(
            scores, b.sampler_logprobs, b.ref_logprobs, b.mask, b.advantages,
            clip_eps=clip_eps, kl_coef=kl_coef,
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
            batches = jax.tree.map(lambda a: _split(a, micro), batch)
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
    return _compile_update(update, cfg, mesh, optimizer, params_dtype, (batch,))


def _compile_update(
    update: Callable,
    cfg: DecoderConfig,
    mesh: Mesh,
    optimizer: Any,
    params_dtype: str,
    batch: tuple,
) -> Program:
    frozen, trained = lora.split(abstract_params(cfg, mesh, params_dtype))
    state = abstract_state(trained, optimizer, mesh)
    out, args = (_shardings(state), replicated(mesh)), (state, frozen, *batch)
    return compile_program(update, args, out_shardings=out, donate=(0,))


def sft_gradients(cfg: DecoderConfig, mesh: Mesh, *, dtype: str, remat: str) -> Any:
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
        scores = _completion_scores(
            params, cfg, prompt, mask, tokens,
            mesh=mesh, temperature=1.0, dtype=dtype, remat=remat,
        )  # fmt: skip
        return losses.sft_loss(scores.logprobs, keep) / jnp.maximum(keep.sum(), 1)

    return jax.value_and_grad(loss)


def make_sft_update(
    cfg: DecoderConfig,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    batch_size: int,
    prompt_tokens: int,
    targets: int,
    target_tokens: int,
    params_dtype: str,
    dtype: str,
    remat: str,
) -> Program:
    """(TrainState, frozen, prompt, mask, targets [B G C], mask) -> (TrainState,
    metrics), state donated."""
    gradients = sft_gradients(cfg, mesh, dtype=dtype, remat=remat)

    def update(state: TrainState, *inputs: Any) -> tuple[TrainState, dict]:
        value, grads = gradients(state.params, *inputs)
        return _finish_supervised(state, grads, value, optimizer, schedule)

    B, G, P, C = batch_size, targets, prompt_tokens, target_tokens
    batch = (
        rows(mesh, (B, P), jnp.int32),
        rows(mesh, (B, P), jnp.bool_),
        rows(mesh, (B, G, C), jnp.int32),
        rows(mesh, (B, G, C), jnp.bool_),
    )
    return _compile_update(update, cfg, mesh, optimizer, params_dtype, batch)


def _finish_supervised(
    state: TrainState, grads: Any, loss: Array, optimizer: Any, schedule: Any
) -> tuple[TrainState, dict]:
    new, norm = apply_gradients(state, grads, loss, optimizer)
    return new, {
        "policy/loss": loss,
        "optim/grad_norm": norm,
        "optim/lr": schedule(state.step),
        "optim/skipped": new.skipped,
        "skipped_in_row": new.skipped_in_row,
    }


# --- the encoder


@functools.cache
def make_embed(
    cfg: DecoderConfig,
    mesh: Mesh,
    *,
    batch_size: int,
    tokens: int,
    params_dtype: str,
    dtype: str,
) -> Program:
    """(params, tokens [B T], mask) -> unit vectors [B E], float32."""

    def run(params: Params, texts: Array, mask: Array) -> Array:
        params = decoder.gather_tables(params, jnp.dtype(dtype))
        return encoder.embed(params, cfg, texts, mask, dtype=jnp.dtype(dtype))

    args = (
        abstract_params(cfg, mesh, params_dtype),
        rows(mesh, (batch_size, tokens), jnp.int32),
        rows(mesh, (batch_size, tokens), jnp.bool_),
    )
    return compile_program(run, args, out_shardings=by_batch(mesh))


def contrastive_gradients(
    cfg: DecoderConfig,
    *,
    similarity_temperature: float,
    dtype: str,
    remat: str,
) -> Any:
    """(trained, frozen, queries, mask, items, mask, item ids) -> (loss, gradients)."""

    def loss(
        trained: Params,
        frozen: Params,
        q: Array,
        qm: Array,
        i: Array,
        im: Array,
        ids: Array,
    ) -> Array:
        params = lora.join(frozen, trained)
        params = decoder.gather_tables(params, jnp.dtype(dtype))
        options = {"dtype": jnp.dtype(dtype), "remat": remat}
        users = encoder.embed(params, cfg, q, qm, **options)
        items = encoder.embed(params, cfg, i, im, **options)
        return losses.supervised_contrastive(
            users, items, ids, similarity_temperature=similarity_temperature
        )

    return jax.value_and_grad(loss)


def make_encoder_update(
    cfg: DecoderConfig,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    batch_size: int,
    query_tokens: int,
    item_tokens: int,
    similarity_temperature: float,
    params_dtype: str,
    dtype: str,
    remat: str,
) -> Program:
    """(TrainState, frozen, queries, mask, items, mask, item ids) -> (TrainState,
    metrics), state donated.

    The batch's other rows are the negatives, over the whole mesh: the product of all
    queries with all items is one global matrix.
    """
    gradients = contrastive_gradients(
        cfg, similarity_temperature=similarity_temperature, dtype=dtype, remat=remat
    )

    def update(state: TrainState, *inputs: Any) -> tuple[TrainState, dict]:
        value, grads = gradients(state.params, *inputs)
        return _finish_supervised(state, grads, value, optimizer, schedule)

    B = batch_size
    batch = (
        rows(mesh, (B, query_tokens), jnp.int32),
        rows(mesh, (B, query_tokens), jnp.bool_),
        rows(mesh, (B, item_tokens), jnp.int32),
        rows(mesh, (B, item_tokens), jnp.bool_),
        rows(mesh, (B,), jnp.int32),
    )
    return _compile_update(update, cfg, mesh, optimizer, params_dtype, batch)
