"""The embedder of our own encoder."""

import functools

import jax
import numpy as np

from blue.inference.embed import make_embed_programs, make_embedder
from blue.models import encoder, qwen3
from blue.runtime.sharding import make_mesh
from tests.helpers.small_model import FLOAT32, LINES, WORDS, alone, few_words, make


def test_embedder_keeps_order_pads_and_cuts_before_the_pooling_token():
    tokenizer, mesh = few_words(), make_mesh(1, -1, 1)
    cfg, params = make(qwen3.tiny_qwen3, tokenizer, mesh)
    run = make_embed_programs(cfg, mesh, FLOAT32, lengths=(4, 8, 32), batch_size=8)
    embed = make_embedder(
        cfg, tokenizer, mesh, run, max_tokens=12, batch_size=8
    ).embed  # fmt: skip
    texts = ["red tent", " ".join(WORDS), "blue", "river stone apple bread", *LINES[:9]]
    got = embed(params, texts)
    plain = jax.jit(functools.partial(encoder.embed, params, cfg))
    for text, vector in zip(texts, got, strict=True):
        want = alone(plain, tokenizer.pooled(text))
        np.testing.assert_allclose(vector, want[0], atol=1e-5)
    long = " ".join(WORDS * 3)
    kept = tokenizer.pooled(long)[:11] + tokenizer.pooled(long)[-1:]
    want = alone(plain, kept)
    np.testing.assert_allclose(embed(params, [long]), want, atol=1e-5)
