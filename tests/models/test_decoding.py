"""Decoding with a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blue.models import decoder, decoding
from blue.models.decoder import LOCAL
from tests.helpers.random_decoders import (
    GEMMA,
    LENGTHS,
    QWEN,
    TWO_LAYERS,
    G,
    P,
    group_batch,
    jit,
    random_params,
    random_tokens,
)


@pytest.mark.parametrize(
    "cfg, starts",
    [(TWO_LAYERS, None), (GEMMA, (0, 2, 5)), (QWEN, None)],
    ids=["gemma3", "gemma3, each row at its own slot", "qwen3"],
)
def test_decoding_with_the_cache_equals_teacher_forcing(cfg, starts):
    """Completions of 11 tokens over windows of 4, prompts of 7, 3 and 1."""
    params, length = random_params(cfg), 11
    prompt, mask, _ = group_batch(cfg)
    completions = random_tokens(cfg, (len(LENGTHS), G, length), seed=3)
    expected = jit(lambda p: decoder.group_forward(p, cfg, prompt, mask, completions))
    # [T] slots for all rows, or [T B]: those that wait or are done repeat a token
    slots = jnp.arange(length - 1)
    if starts:
        turns = jnp.arange(length - 1 + max(starts))
        slots = turns[:, None] - jnp.asarray(starts)[None]
        slots = jnp.clip(slots, 0, length - 2)

    @jit
    def decode(params):
        params = decoding.unstack_layers(params)
        last, kept = decoding.prefill(params, cfg, prompt, mask)
        cache = decoding.init_cache(cfg, len(LENGTHS), G, length)
        local = cfg.kind(0) == LOCAL
        assert kept[0].k.shape[2] == (4 if local else P)
        assert cache[0].k.shape[2] == (4 if local else length)

        def step(cache, slot):
            rows = jnp.broadcast_to(slot, (len(LENGTHS),))
            at = rows[:, None, None]
            tokens = jnp.take_along_axis(completions, at, axis=2)[..., 0]
            hidden, cache = decoding.decode_step(
                params, cfg, tokens, slot, mask, kept, cache
            )
            return cache, (rows, hidden)

        return last, jax.lax.scan(step, cache, slots)[1]

    want = expected(params)
    last, (rows, hidden) = decode(params)
    first = jnp.broadcast_to(last[:, None], want[:, :, 0].shape)
    np.testing.assert_allclose(first, want[:, :, 0], atol=5e-6)
    for here, found in zip(np.asarray(rows), np.asarray(hidden), strict=True):
        for b, slot in enumerate(here):
            np.testing.assert_allclose(found[b], want[b, :, slot + 1], atol=5e-6)
