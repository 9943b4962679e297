"""Prompts -> G completions each, with the sampler's log-probabilities.

The prompt is prefilled once a user; its keys and values serve all G completions. Every
row decodes from slot 0 of its completion, whatever its prompt's length. Randomness is a
function of (key, example, rollout, position), so results do not depend on batching.

`sample` decodes a batch until all rows have ended. For many prompts, `refill` puts new
ones in the place of rows that have ended, and `advance` decodes on. This is continuous
batching (Yu et al. 2022, Orca, section 3.1: scheduling by the iteration).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from blue.runtime.shapes import Sampling

BLOCK = 128  # tokens a block of the vocabulary in `draw`: the lanes of a TPU
# Decode steps between checks whether all rows have ended: on many chips each check is a
# message among all of them.
CHECK_EVERY = 8


class Rollout(NamedTuple):
    """The record of one sampling pass."""

    tokens: Int[Array, "B G C"]  # after the end token: pad_id
    mask: Bool[Array, "B G C"]  # True up to and including the end token
    logprobs: Float[Array, "B G C"]  # of the sampler, float32; 0 where mask is False


class SamplerModel(NamedTuple):
    """The functions of a model that sampling uses.

        prefill(prompt, mask) -> (hidden [B D], what to keep of the prompts)
        begin(kept) -> state, with room for completions
        step(tokens [B G], slot, state) -> (hidden [B G D], state)
        logits(hidden [B G D]) -> [B G V] float32

    slot: one for all rows, or one a prompt [B].
    """

    prefill: Callable[[Array, Array], tuple[Array, Any]]
    begin: Callable[[Any], Any]
    step: Callable[[Array, Array, Any], tuple[Array, Any]]
    logits: Callable[[Array], Array]


class Slots(NamedTuple):
    """B completions in progress, each with its own prompt and position."""

    tokens: Int[Array, "B C"]
    length: Int[Array, " B"]  # tokens written so far
    done: Bool[Array, " B"]  # ended or not started: free for a prompt
    example_ids: Int[Array, " B"]
    hidden: Float[Array, "B 1 D"]  # predicts the next token
    state: Any  # of the model, leading axis B; prompts are right-aligned


def truncate_logits(
    logits: Float[Array, "*b V"], *, top_k: int, top_p: float
) -> Float[Array, "*b V"]:
    """Minus infinity outside the top k tokens and the nucleus of mass top_p.

    top_k 0 and top_p 1 keep everything. The most likely token always stays. Nucleus:
    Holtzman et al. 2020, https://arxiv.org/abs/1904.09751.
    """
    if top_k:
        smallest = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    if top_p < 1.0:
        ordered = -jnp.sort(-logits, axis=-1)
        probs = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs  # mass of more likely tokens
        kept = jnp.where(before < top_p, ordered, jnp.inf)
        logits = jnp.where(logits < kept.min(axis=-1, keepdims=True), -jnp.inf, logits)
    return logits


def draw(
    logits: Float[Array, "*b G V"], uniforms: Float[Array, "*b G 2"], *, block: int
) -> tuple[Int[Array, "*b G"], Float[Array, "*b G"]]:
    """One token a row with probability softmax(logits), and its log-probability.

    p(token) = p(its block) p(token | its block). One uniform number chooses a block of
    `block` tokens, another a token in it. So a row needs two random numbers, not V, and
    one pass over the logits.
    """
    missing = -logits.shape[-1] % block
    widths = [(0, 0)] * (logits.ndim - 1) + [(0, missing)]
    logits = jnp.pad(logits, widths, constant_values=-jnp.inf)
    top = logits.max(axis=-1, keepdims=True)
    # Blocks come before rows, as TPU memory holds tiles of 8 rows and 128 tokens. Any
    # other order would copy all logits.
    blocks = jnp.swapaxes(logits.reshape(*logits.shape[:-1], -1, block), -3, -2)
    masses = jnp.exp(blocks - jnp.expand_dims(top, -3)).sum(axis=-1)
    # else the sum below is a second pass over the logits
    masses = jax.lax.optimization_barrier(jnp.swapaxes(masses, -1, -2))
    chosen = _pick(masses, uniforms[..., 0])
    inside = jnp.take_along_axis(blocks, chosen[..., None, :, None], axis=-3)
    inside = inside[..., 0, :, :]
    place = _pick(jnp.exp(inside - top), uniforms[..., 1])
    logit = jnp.take_along_axis(inside, place[..., None], axis=-1)[..., 0]
    logprob = logit - top[..., 0] - jnp.log(masses.sum(axis=-1))
    return chosen * block + place, logprob


def _pick(mass: Float[Array, "*b n"], uniform: Float[Array, "*b"]) -> Int[Array, "*b"]:
    """An index with probability proportional to its mass: where the running sum passes
    `uniform` [0, 1) of the total. Never one of mass 0, despite rounding."""
    below = jnp.where(mass > 0, jnp.cumsum(mass, axis=-1), 0.0)
    goal = uniform[..., None] * below.max(axis=-1, keepdims=True)
    return jnp.argmax(below > goal, axis=-1).astype(jnp.int32)


def sample_tokens(
    logits: Float[Array, "B G V"],
    keys: Any,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
) -> tuple[Int[Array, "B G"], Float[Array, "B G"]]:
    """One token a row and its log-probability under the distribution sampled from.

    keys: [B G] typed random keys. temperature 0 is greedy (log-probability of the
    untempered distribution).
    """
    if temperature == 0.0:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
        return tokens, chosen - jax.nn.logsumexp(logits, axis=-1)
    logits = truncate_logits(logits / temperature, top_k=top_k, top_p=top_p)
    uniforms = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (2,))))(keys)
    return draw(logits, uniforms, block=BLOCK)


def _row_keys(key: Any, example_ids: Int[Array, " B"], group_size: int) -> Any:
    """Keys [B G] of the rows, to be folded with the position."""
    by_example = jax.vmap(lambda i: jax.random.fold_in(key, i))(example_ids)
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return jax.vmap(lambda k: fold(k, jnp.arange(group_size)))(by_example)


def sample(
    model: SamplerModel,
    hidden: Float[Array, "B D"],
    kept: Any,
    key: Any,
    example_ids: Int[Array, " B"],
    *,
    group_size: int,
    max_tokens: int,
    sampling: Sampling,
) -> Rollout:
    """G completions of every prompt, at most `max_tokens` long.

    hidden, kept: of `model.prefill`. A row stops at any of the end ids and includes it,
    so it has one token or more. An empty completion is an end token alone; one at the
    limit has none. The loop ends fewer than `CHECK_EVERY` steps after all rows have.
    """
    B, G = hidden.shape[0], group_size
    row_keys = _row_keys(key, example_ids, G)
    fold_position = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))
    ends, pad_id = jnp.asarray(sampling.end_ids, jnp.int32), sampling.pad_id

    state = model.begin(kept)
    hidden = jnp.broadcast_to(hidden[:, None], (B, G, hidden.shape[-1]))
    shape = (B, G, max_tokens)
    record = Rollout(
        jnp.full(shape, pad_id, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape)
    )

    def unfinished(carry: tuple) -> Array:
        t, all_done, *_ = carry
        return (t < max_tokens) & ~all_done

    def one_token(carry: tuple) -> tuple:
        t, _, hidden, state, done, record = carry
        tokens, logprobs = sample_tokens(
            model.logits(hidden),
            fold_position(row_keys, t),
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
        )
        tokens = jnp.where(done, pad_id, tokens)
        put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(
            old, new[..., None].astype(old.dtype), t, axis=2
        )
        record = Rollout(
            put(record.tokens, tokens),
            put(record.mask, ~done),
            put(record.logprobs, jnp.where(done, 0.0, logprobs)),
        )
        done = done | jnp.isin(tokens, ends)
        hidden, state = model.step(tokens, t, state)
        look = (t + 1) % CHECK_EVERY == 0
        all_done = jax.lax.cond(look, jnp.all, lambda _: jnp.bool_(False), done)
        return t + 1, all_done, hidden, state, done, record

    done = jnp.zeros((B, G), bool)
    start = (jnp.int32(0), jnp.bool_(False), hidden, state, done, record)
    return jax.lax.while_loop(unfinished, one_token, start)[-1]


# --- continuous batching


def new_slots(hidden: Float[Array, "B D"], state: Any, max_tokens: int) -> Slots:
    """Slots for the results of the model's prefill, still marked as free."""
    batch = len(hidden)
    return Slots(
        tokens=jnp.zeros((batch, max_tokens), jnp.int32),
        length=jnp.zeros(batch, jnp.int32),
        done=jnp.ones(batch, bool),
        example_ids=jnp.zeros(batch, jnp.int32),
        hidden=hidden[:, None],
        state=state,
    )


def refill(
    model: SamplerModel,
    slots: Slots,
    prompt: Int[Array, "N P"],
    prompt_mask: Bool[Array, "N P"],
    example_ids: Int[Array, " N"],
    rows: Int[Array, " N"],
) -> Slots:
    """`slots` with N new prompts at `rows`; those at row B or above are ignored.

    P may be shorter than the prompts of `slots`: they are right-aligned.
    """
    hidden, kept = model.prefill(prompt, prompt_mask)
    state = model.begin(kept)

    def put(old: Array, new: Array) -> Array:
        sizes = zip(old.shape[1:], new.shape[1:], strict=True)
        new = jnp.pad(new, [(0, 0), *((room - size, 0) for room, size in sizes)])
        return old.at[rows].set(new.astype(old.dtype), mode="drop")

    fresh = new_slots(hidden, state, slots.tokens.shape[1])
    fresh = fresh._replace(done=jnp.zeros(len(rows), bool), example_ids=example_ids)
    return jax.tree.map(put, slots, fresh)


def advance(
    model: SamplerModel,
    slots: Slots,
    key: Any,
    num_free: Int[Array, ""],
    sampling: Sampling,
) -> tuple[Slots, Int[Array, ""]]:
    """Decodes until at least `num_free` of the B rows are done; also the number of
    steps.

    The tokens are those of `sample` with `group_size` 1 at the same key. Every step
    checks whether it is the last: idle rows cost more than the check.
    """
    max_tokens = slots.tokens.shape[1]
    row_keys = _row_keys(key, slots.example_ids, 1)[:, 0]
    fold_position = jax.vmap(jax.random.fold_in)
    ends = jnp.asarray(sampling.end_ids, jnp.int32)

    def too_few(carry: tuple[Slots, Array]) -> Array:
        return carry[0].done.sum() < num_free

    def one_token(carry: tuple[Slots, Array]) -> tuple[Slots, Array]:
        s, steps = carry
        at = jnp.minimum(s.length, max_tokens - 1)  # rows that are done change nothing
        new, _ = sample_tokens(
            model.logits(s.hidden),
            fold_position(row_keys, at)[:, None],
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
        )
        hidden, state = model.step(new, at, s.state)
        here = ~s.done[:, None] & (jnp.arange(max_tokens)[None] == at[:, None])
        length = s.length + ~s.done
        ended = jnp.isin(new[:, 0], ends) | (length == max_tokens)
        s = Slots(
            tokens=jnp.where(here, new, s.tokens),
            length=length,
            done=s.done | ended,
            example_ids=s.example_ids,
            hidden=hidden,
            state=state,
        )
        return s, steps + 1

    return jax.lax.while_loop(too_few, one_token, (slots, jnp.int32(0)))
