"""Texts in rows: nothing lost, little room lost, beginnings once, the same vectors."""

import dataclasses
import functools
import math
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from blue.inference import packing
from blue.models import attention, decoder, encoder, families, flops, gemma3, qwen3
from blue.text import prompts, queries
from blue.text.rule_profiles import template_profile
from blue.text.templates import TEMPLATES
from blue.text.tokenizer import load_tokenizer
from configs import base
from tests.helpers.real_logs import real_log

CONFIG = base.get_config().encoder
ENCODER = families.preset(CONFIG.preset)


def pack(texts, *, lengths, rows, cfg=ENCODER):
    cost = lambda length: flops.encode(cfg, rows, length)
    return list(packing.pack(texts, lengths=lengths, rows=rows, cost=cost, pad_id=0))


def unpack(batches):
    """{number: ids} as a token of each text sees them, its positions being 0, 1, ..."""
    found = {}
    for b in batches:
        for r, s in zip(*np.nonzero(b.text >= 0), strict=True):
            end = b.ends[r, s]
            own, parent = b.segment[r, end], b.parent[r, end]
            seen = np.flatnonzero(
                ((b.segment[r] == own) | (b.segment[r] == parent))
                & (np.arange(b.segment.shape[1]) <= end)
            )
            np.testing.assert_array_equal(b.position[r, seen], np.arange(len(seen)))
            assert b.text[r, s] not in found, "a text came twice"
            found[int(b.text[r, s])] = b.tokens[r, seen].tolist()
    return [found[n] for n in range(len(found))]


def padding(batches):
    """Share of the slots without a token."""
    return 1 - sum(b.used for b in batches) / sum(b.tokens.size for b in batches)


def distinct(texts):
    return [list(ids) for ids in dict.fromkeys(map(tuple, texts))]


@pytest.mark.parametrize("seed", range(6))
def test_every_text_comes_out_whole_and_once(seed):
    """Texts that are beginnings of others, alike but for the last id, of one id."""
    rng = np.random.default_rng(seed)
    begin = [rng.integers(9, size=rng.integers(1, 40)).tolist() for _ in range(5)]
    texts = [[7], [7, 8], begin[0] + [8], begin[0][:-1] + [8]]
    for _ in range(rng.integers(1, 300)):
        own = rng.integers(9, size=rng.integers(0, 24)).tolist()
        texts.append(begin[rng.integers(5)] + own + [8])
    texts = distinct(texts)
    batches = pack(texts, lengths=(16, 48, 64, 160), rows=3)
    assert unpack(batches) == texts
    for b in batches:
        assert b.used == (b.segment >= 0).sum()
        assert b.tokens.shape in {(3, n) for n in (16, 48, 64, 160)}
    assert pack([], lengths=(16,), rows=3) == []


# --- how much is lost


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("median, count", [(20, 4096), (60, 1024), (200, 1024)])
def test_log_normal_lengths_leave_little_padding(median, count, seed):
    """Texts with nothing in common, as many as a slice of items, or a step, has."""
    rng = np.random.default_rng(seed)
    sizes = np.clip(rng.lognormal(math.log(median), 0.8, count), 3, CONFIG.max_tokens)
    texts = [rng.integers(8000, size=int(n)).tolist() for n in sizes]
    batches = pack(texts, lengths=CONFIG.buckets, rows=CONFIG.batch_size)
    assert padding(batches) <= 0.15
    assert sum(b.used for b in batches) == sum(map(len, texts))


def test_the_prefix_of_a_user_is_counted_once():
    """64 users, 8 profiles of 40 to 60 tokens each, alone and after 100 others."""
    rng = np.random.default_rng(0)
    users = rng.integers(8000, size=(64, 100)).tolist()
    draw = lambda: rng.integers(8000, size=rng.integers(40, 61)).tolist()
    profiles = [(user, draw()) for user in users for _ in range(8)]
    texts = [user + own for user, own in profiles] + [own for _, own in profiles]
    batches = pack(texts, lengths=CONFIG.buckets, rows=CONFIG.batch_size)
    used, once = sum(b.used for b in batches), 64 * 100 + 2 * 512 * 50
    assert padding(batches) <= 0.15
    assert used < 1.2 * once < 0.7 * sum(map(len, texts))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_embedding", "gemma3"])
def test_texts_of_a_real_log_with_real_tokenizers(name):
    """The items, and both views of a step's profiles: whole, and hardly any padding."""
    log = real_log("movielens", "movielens_latest_small")
    tokenizer = load_tokenizer(Path(os.environ["BLUE_TEST_DATA"], "tokenizers", name))
    rng = np.random.default_rng(0)
    f = queries.QueryFormat(
        TEMPLATES["full"], prompts.query_prefix("Find what comes next"), 10,
        lambda text: len(tokenizer.pooled(text)), CONFIG.max_tokens,
    )  # fmt: skip
    views = []
    for _ in range(64):
        titles = [log.titles[i] for i in rng.integers(len(log.titles), size=30)]
        for _ in range(8):
            profile = template_profile(
                f.templates, titles, num_items=int(rng.integers(5, 31)), rng=rng
            )
            views.append(queries.history_profile_query(f, titles, profile))
            views.append(queries.profile_query(f, profile))
    for texts in (views, log.texts[:4096]):
        ids = distinct(tokenizer.pooled_batch(texts))
        batches = pack(ids, lengths=CONFIG.buckets, rows=CONFIG.batch_size)
        assert unpack(batches) == ids
        assert padding(batches) <= 0.15
        if texts is views:
            assert sum(b.used for b in batches) < 0.75 * sum(map(len, ids))


# --- what is computed

init_params = jax.jit(decoder.init_params, static_argnums=0)
embed_alone = jax.jit(encoder.embed, static_argnums=1)


@pytest.mark.parametrize("kernel", [None, "splash"])
@pytest.mark.parametrize("family", [qwen3.tiny_qwen3, gemma3.tiny_gemma3])
def test_vectors_are_those_of_each_text_alone(family, kernel, monkeypatch):
    """Beginnings that are shared, longer than a local window; both paddings."""
    cfg = dataclasses.replace(
        family(), vocab_size=64, width=32, mlp_width=48, head_size=8, window=5,
        num_layers=2, pattern=family().pattern[-2:],
    )  # fmt: skip
    params = init_params(cfg, jax.random.key(0))
    rng = np.random.default_rng(1)
    draw = lambda low, high: rng.integers(2, 64, size=rng.integers(low, high)).tolist()
    users = [draw(9, 20) for _ in range(3)]
    texts = [user + draw(1, 12) + [1] for user in users for _ in range(4)]
    texts += [user + [1] for user in users] + [draw(0, 30) + [1] for _ in range(8)]
    texts = distinct(texts)
    batches = pack(texts, lengths=(64,), rows=4, cfg=cfg)
    got = np.zeros((len(texts), 32), np.float32)
    with monkeypatch.context() as m:
        m.setattr(attention, "implementation_here", lambda **_: kernel)
        embed = jax.jit(functools.partial(encoder.embed_packed, params, cfg))
        for b in batches:
            found = np.asarray(embed(*b[:5]))
            got[b.text[b.text >= 0]] = found[b.text >= 0]
    longest = max(map(len, texts))
    tokens = np.zeros((len(texts), longest), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for n, ids in enumerate(texts):
        tokens[n, longest - len(ids) :], mask[n, longest - len(ids) :] = ids, True
    want = embed_alone(params, cfg, tokens, mask)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert sum(b.used for b in batches) < 0.8 * mask.sum()  # they were shared
