"""Vectors of texts."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from blue.models import decoder, encoder, qwen3
from tests.helpers.random_decoders import (
    QWEN,
    jit,
    random_params,
    random_tokens,
    right_aligned,
)


def test_tables_of_vectors_from_before_there_were_families_are_found_again():
    told = encoder.architecture(qwen3.tiny_qwen3())
    assert told == (
        "DecoderConfig(vocab_size=1024, width=64, mlp_width=128, num_layers=2, "
        "num_heads=4, num_kv_heads=2, head_size=16, pattern=('global',), window=0, "
        "rope_theta=10000.0, rope_theta_local=10000.0, rope_factor=1.0, "
        "norm_eps=1e-06, norm_plus_one=False, post_norms=False, activation='silu', "
        "scale_embedding=False, query_scale=0.0, tied=True, lora=None)"
    )
    without = dataclasses.replace(qwen3.tiny_qwen3(), qk_norms=False)
    assert "qk_norms=False" in encoder.architecture(without)


def test_embeddings_have_unit_length_in_float32():
    params = random_params(QWEN)
    tokens, mask = random_tokens(QWEN, (3, 6)), right_aligned([6, 4, 1], 6)
    embed = functools.partial(encoder.embed, dtype=jnp.bfloat16)
    found = jit(lambda p: embed(p, QWEN, tokens, mask))(params)
    assert found.dtype == jnp.float32 and found.shape == (3, QWEN.width)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)
    hidden = jit(lambda p: decoder.forward(p, QWEN, tokens, mask)[:, -1])(params)
    cosine = jnp.sum(found * hidden, -1) / jnp.linalg.norm(hidden, axis=-1)
    np.testing.assert_allclose(cosine, 1, atol=1e-3)  # bfloat16
