"""The sampler against the trainer, against the distribution, and its stopping rules."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blue.inference import rollout, sampling
from blue.models import decoder, decoding, gemma3, qwen3
from blue.models.decoder import DecoderConfig
from blue.models.logprobs import token_logprobs
from blue.runtime.shapes import Sampling

SLOW_QWEN = pytest.param(qwen3.tiny_qwen3, marks=pytest.mark.slow)
FAMILIES = [gemma3.tiny_gemma3, SLOW_QWEN]
TINY = DecoderConfig(
    family="qwen3", vocab_size=13, width=16, mlp_width=32, num_layers=1, num_heads=4,
    num_kv_heads=2, head_size=8,
)  # fmt: skip


DRAWS = Sampling(temperature=1.0, top_k=0, top_p=1.0, end_ids=(1,), pad_id=0)


# Compiled once for all tests that ask for the same shapes.
init_params = jax.jit(decoder.init_params, static_argnums=0)
forward = jax.jit(decoder.forward, static_argnums=1)


def make_params(cfg, sharpen=1.0):
    params = init_params(cfg, jax.random.key(0))
    return params | {"embed": params["embed"] * sharpen}


def model_of(params, cfg, group, length):
    sizes = {"group": group, "length": length, "dtype": jnp.float32}
    return sampling.sampler_model(decoding.unstack_layers(params), cfg, **sizes)


def prompts(cfg, B, P, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, cfg.vocab_size, (B, P)).astype(np.int32)
    lengths = rng.integers(1, P + 1, B)
    return tokens, np.arange(P)[None] >= P - lengths[:, None]


@functools.cache
def sampler(cfg, group_size, max_tokens, draws):
    """(params, prompt, mask, key, ids) -> Rollout."""
    sizes = {"group_size": group_size, "max_tokens": max_tokens}

    def run(params, prompt, mask, key, ids):
        model = model_of(params, cfg, group_size, max_tokens)
        given = *model.prefill(prompt, mask), key, ids
        return rollout.sample(model, *given, **sizes, sampling=draws)

    return jax.jit(run)


def sample(
    cfg, params, prompt, mask, ids=None, key=0, group_size=3, max_tokens=6, **draws
):
    ids = np.arange(prompt.shape[0]) if ids is None else ids
    run = sampler(cfg, group_size, max_tokens, DRAWS._replace(**draws))
    return run(params, prompt, mask, jax.random.key(key), ids)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "temperature", [0.7, pytest.param(1.0, marks=pytest.mark.slow)]
)
def test_sampler_and_trainer_agree(family, temperature):
    cfg = dataclasses.replace(family(), vocab_size=64, window=4)
    params = make_params(cfg, sharpen=2.0)
    prompt, mask = prompts(cfg, 4, 7)
    r = sample(cfg, params, prompt, mask, temperature=temperature)

    @jax.jit
    def trainer(params, prompt, mask, tokens):
        hidden = decoder.group_forward(params, cfg, prompt, mask, tokens)
        return token_logprobs(
            hidden, tokens, decoder.head(params), temperature=temperature, chunk=4
        )

    scores = trainer(params, prompt, mask, r.tokens)
    gap = jnp.where(r.mask, jnp.abs(scores.logprobs - r.logprobs), 0)
    assert gap.max() < 1e-4
    assert jnp.where(r.mask, scores.logprobs, 0).min() < -1.0  # not a trivial case


def test_greedy_with_cache_equals_greedy_without():
    params = make_params(TINY, sharpen=5.0)
    prompt, mask = prompts(TINY, 3, 6)
    r = sample(
        TINY, params, prompt, mask, group_size=1, max_tokens=5, temperature=0.0,
        end_ids=(99,),
    )  # fmt: skip
    tokens, seen = (np.pad(x, ((0, 0), (0, 5))) for x in (prompt, mask))
    for t in range(6, 11):
        hidden = forward(params, TINY, tokens, seen)[:, t - 1]
        best = np.argmax(hidden @ params["embed"].T, axis=-1)
        np.testing.assert_array_equal(r.tokens[:, 0, t - 6], best)
        tokens[:, t], seen[:, t] = best, True


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"temperature": 0.5},
        {"top_k": 4},
        {"top_p": 0.6},
    ],
    ids=str,
)
def test_sampled_frequencies_match_the_distribution(options):
    """Chi-square of 6,000 first tokens, and of second tokens after the commonest."""
    n = 6000
    params = make_params(TINY, sharpen=3.0)
    prompt, mask = prompts(TINY, 1, 5)
    options = {"temperature": 1.0} | options
    r = sample(
        TINY, params, prompt, mask, group_size=n, max_tokens=2, end_ids=(99,), **options
    )
    first, second = np.asarray(r.tokens[0, :, 0]), np.asarray(r.tokens[0, :, 1])
    common = np.bincount(first).argmax()

    longer, seen = (np.pad(x, ((0, 0), (0, 1))) for x in (prompt, mask))
    longer[:, -1], seen[:, -1] = common, True
    hidden = np.asarray(forward(params, TINY, longer, seen))[0]

    def expected(last):
        logits = hidden[last] @ np.asarray(params["embed"]).T / options["temperature"]
        p = np.asarray(jax.nn.softmax(logits), np.float64)
        order = np.argsort(-p)
        if "top_k" in options:
            p[order[options["top_k"] :]] = 0
        if "top_p" in options:
            p[order[np.cumsum(p[order]) - p[order] >= options["top_p"]]] = 0
        return p / p.sum()

    for drawn, last in ((first, -2), (second[first == common], -1)):
        p = expected(last)
        counts = np.bincount(drawn, minlength=TINY.vocab_size)
        assert counts[p == 0].sum() == 0
        kept = p * len(drawn) >= 5
        chi2 = ((counts - p * len(drawn))[kept] ** 2 / (p * len(drawn))[kept]).sum()
        df = kept.sum() - 1
        assert df >= 1 and chi2 < df + 4.5 * np.sqrt(2 * df) + 4  # p about 1e-4
        if last == -2:
            logprob = np.asarray(r.logprobs)[0, :, 0]
            np.testing.assert_allclose(logprob, np.log(p[drawn]), atol=1e-4)


def test_two_uniform_numbers_draw_from_the_softmax():
    """Chi-square of 40,000 draws, beside those of `jax.random.categorical`.

    A fine grid of numbers, both ends of [0, 1) included, gives each token its share.
    """
    logits = np.random.default_rng(0).normal(0, 1.5, 13).astype(np.float32)
    logits[[0, 3, 8, 9, 10, 11]] = -np.inf  # a whole block of 4, and the first
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    kept = p > 0
    n, key = 40_000, jax.random.key(3)
    rows = jnp.broadcast_to(logits, (n, 13))
    draw = jax.jit(lambda uniforms: rollout.draw(rows, uniforms, block=4))
    found, logprobs = draw(jax.random.uniform(key, (n, 2)))
    np.testing.assert_allclose(logprobs, np.log(p[found]), atol=1e-5)
    for drawn in (found, jax.random.categorical(key, rows)):
        counts = np.bincount(drawn, minlength=13)
        assert counts[~kept].sum() == 0
        chi2 = ((counts - p * n)[kept] ** 2 / (p * n)[kept]).sum()
        assert chi2 < 27  # 6 degrees of freedom: p about 1e-4
    ends = np.append(np.linspace(0, 1, 199, endpoint=False), 1 - 2**-23)
    grid = np.stack(np.meshgrid(ends, ends), axis=-1).reshape(n, 2)
    counts = np.bincount(draw(grid.astype(np.float32))[0], minlength=13)
    assert counts[~kept].sum() == 0
    np.testing.assert_allclose(counts / n, p, atol=0.011)  # 200 places, two steps


def test_end_token_is_kept_and_nothing_follows():
    params = make_params(TINY)
    prompt, mask = prompts(TINY, 2, 4)
    r = sample(TINY, params, prompt, mask, group_size=50, max_tokens=8, end_ids=(3, 5))
    tokens, kept = np.asarray(r.tokens), np.asarray(r.mask)
    stopped = 0
    for row, keep in zip(tokens.reshape(-1, 8), kept.reshape(-1, 8), strict=True):
        ends = np.flatnonzero(np.isin(row, (3, 5)))
        length = ends[0] + 1 if len(ends) else 8
        stopped += len(ends) > 0
        assert keep.sum() == length and keep[:length].all()
        assert (row[length:] == 0).all()
    assert 0 < stopped < 100
    assert (np.asarray(r.logprobs)[~kept] == 0).all()


@pytest.mark.parametrize("ends, length", [(tuple(range(13)), 1), ((99,), 6)])
def test_completions_that_end_at_once_or_never(ends, length):
    """The end token comes first: one token, that one. No end token: all of the budget.
    A prompt of padding alone is as good as another."""
    params = make_params(TINY)
    prompt, mask = prompts(TINY, 4, 5)
    mask[0] = False
    r = jax.device_get(sample(TINY, params, prompt, mask, end_ids=ends))
    assert (r.mask.sum(axis=-1) == length).all() and r.mask[:, :, 0].all()
    assert np.isfinite(r.logprobs).all() and (r.logprobs < 0)[r.mask].all()
    assert (r.tokens[~r.mask] == 0).all() and (r.logprobs[~r.mask] == 0).all()


@pytest.mark.parametrize(
    "max_tokens, steps", [(20, 8), pytest.param(6, 6, marks=pytest.mark.slow)]
)
def test_loop_ends_soon_after_all_rows_have(max_tokens, steps):
    """Every token ends a row: eight steps are taken, and nothing comes of seven."""
    taken = []
    params = make_params(TINY)
    prompt, mask = prompts(TINY, 2, 4)

    def run(params, prompt, mask, key, ids):
        model = model_of(params, TINY, 2, max_tokens)

        def step(tokens, slot, state):
            jax.debug.callback(lambda s: taken.append(int(s)), slot)
            return model.step(tokens, slot, state)

        return rollout.sample(
            model._replace(step=step), *model.prefill(prompt, mask), key, ids,
            group_size=2, max_tokens=max_tokens,
            sampling=DRAWS._replace(end_ids=tuple(range(TINY.vocab_size))),
        )  # fmt: skip

    r = jax.jit(run)(params, prompt, mask, jax.random.key(0), np.arange(2))
    jax.effects_barrier()
    assert np.asarray(r.mask).sum() == 4 and taken == list(range(steps))
    assert (np.asarray(r.tokens)[..., 1:] == 0).all()


def test_results_do_not_depend_on_batching():
    params = make_params(TINY)
    prompt, mask = prompts(TINY, 4, 5)
    ids = np.array([11, 7, 300, 42])
    whole = sample(TINY, params, prompt, mask, ids=ids)
    order = np.array([2, 0])
    part = sample(TINY, params, prompt[order], mask[order], ids=ids[order])
    np.testing.assert_array_equal(np.asarray(whole.tokens)[order], part.tokens)
    other = sample(TINY, params, prompt, mask, ids=ids, key=1)
    assert (np.asarray(other.tokens) != np.asarray(whole.tokens)).any()
    # rollouts of one user differ
    assert (np.asarray(whole.tokens[:, 0]) != np.asarray(whole.tokens[:, 1])).any()


def test_padding_more_changes_no_sample():
    params = make_params(TINY)
    prompt, mask = prompts(TINY, 4, 5)
    pad = lambda a: np.pad(a, ((0, 0), (4, 0)))
    a = sample(TINY, params, prompt, mask)
    b = sample(TINY, params, pad(prompt), pad(mask))
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


# --- continuous batching


@pytest.mark.parametrize("family", FAMILIES)
def test_refilled_slots_hold_what_sample_gives(family):
    """Eight prompts through three rows, in the middle of each other's completions."""
    cfg = dataclasses.replace(
        family(), vocab_size=64, window=4, num_layers=2, pattern=family().pattern[-2:]
    )
    params = make_params(cfg)
    prompt, mask = prompts(cfg, 8, 7)
    options = {"group_size": 1, "max_tokens": 9, "end_ids": tuple(range(12))}
    ids = np.array([9, 2, 77, 5, 2**31 - 1, 1, 0, 3])
    want = sample(cfg, params, prompt, mask, ids=ids, **options)
    lengths = np.asarray(want.mask).sum(-1)[:, 0]

    # prompts of seven tokens in slots with room for eleven
    model = lambda params: model_of(params, cfg, 1, 9)

    @jax.jit
    def new_slots(params):
        room = jnp.zeros((3, 11), bool)
        hidden, kept = model(params).prefill(jnp.zeros((3, 11), jnp.int32), room)
        return rollout.new_slots(hidden, model(params).begin(kept), 9)

    slots = new_slots(params)
    refill = jax.jit(lambda params, *a: rollout.refill(model(params), *a))
    advance = jax.jit(
        lambda params, s, n: rollout.advance(
            model(params),
            s,
            jax.random.key(0),
            n,
            DRAWS._replace(end_ids=tuple(range(12))),
        )
    )
    owner, left, found, busy = [None] * 3, list(range(8)), {}, 0
    while left or any(row is not None for row in owner):
        free = [row for row in range(3) if owner[row] is None]
        new = [left.pop(0) for _ in free[: len(left)]]
        if new:
            rows = np.array((free + [3])[: len(new)] + [3] * (3 - len(new)))
            pick = np.array((new * 3)[:3])
            slots = refill(params, slots, prompt[pick], mask[pick], ids[pick], rows)
            for row, number in zip(free, new, strict=False):
                owner[row] = number
        active = [row for row in range(3) if owner[row] is not None]
        before = np.asarray(slots.length)
        missing = [lengths[owner[row]] - before[row] for row in active]
        slots, steps = advance(params, slots, 3 - len(active) + 1)
        done, length = np.asarray(slots.done), np.asarray(slots.length)
        assert steps == min(missing)  # not a step more than one more free row takes
        for row in active:
            if done[row]:
                found[owner[row]] = np.asarray(slots.tokens)[row, : length[row]]
                owner[row] = None
        busy += len(active) > 1
    assert busy > 3 and len(set(lengths.tolist())) > 3
    for number in range(8):
        tokens = np.asarray(want.tokens)[number, 0, : lengths[number]]
        np.testing.assert_array_equal(found[number], tokens)
