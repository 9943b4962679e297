"""The decoder: sizes, causality, padding, and its four passes against each other."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blue.models import decoder
from blue.models.decoder import LOCAL
from tests.helpers import model_answers
from tests.helpers.random_decoders import (
    GEMMA,
    LENGTHS,
    QWEN,
    TWO_LAYERS,
    C,
    G,
    P,
    group_batch,
    jit,
    random_params,
    random_tokens,
    right_aligned,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"
SHALLOW = pytest.mark.parametrize("cfg", [TWO_LAYERS, QWEN], ids=["gemma3", "qwen3"])


# --- one block of tokens


def gradient_to_inputs(cfg, length, at):
    """Sizes of the gradients of the state at position `at` to every token, [T]."""
    params = random_params(cfg)
    tokens = jnp.arange(length)[None]  # each token has a row of its own
    mask = jnp.ones((1, length), bool)
    weights = jax.random.normal(jax.random.key(1), (cfg.width,))

    def state(embed):
        hidden = decoder.forward(params | {"embed": embed}, cfg, tokens, mask)
        return hidden[0, at] @ weights

    return np.abs(jit(jax.grad(state))(params["embed"]))[:length].max(axis=-1)


@SHALLOW
def test_no_gradient_reaches_later_tokens(cfg):
    sizes = gradient_to_inputs(cfg, length=10, at=6)
    assert (sizes[7:] == 0).all()
    assert (sizes[:7] > 1e-6).all()


def test_a_local_layer_sees_its_window_only():
    cfg = dataclasses.replace(GEMMA, num_layers=1)
    sizes = gradient_to_inputs(cfg, length=10, at=8)
    assert (np.flatnonzero(sizes) == [5, 6, 7, 8]).all()  # window 4


@SHALLOW
def test_padding_changes_nothing(cfg):
    params, lengths = random_params(cfg), [7, 3]
    run = jit(lambda t, m: decoder.forward(params, cfg, t, m))
    tokens, mask = random_tokens(cfg, (2, 7)), right_aligned(lengths, 7)
    more = jnp.concatenate([random_tokens(cfg, (2, 5), seed=1), tokens], axis=1)
    expected = run(tokens, mask)
    found = run(more, right_aligned(lengths, 12))[:, 5:]
    np.testing.assert_allclose(found[mask], expected[mask], atol=1e-5)


def tiled_forward(params, cfg, prompt, mask, completions):
    """What `group_forward` saves us from: every prompt computed G times."""
    B, G, C = completions.shape
    tile = lambda a: jnp.repeat(a[:, None], G, axis=1)
    tokens = jnp.concatenate([tile(prompt), completions], axis=-1)
    seen = jnp.concatenate([tile(mask), jnp.ones((B, G, C), bool)], axis=-1)
    rows = lambda a: a.reshape(B * G, -1)
    hidden = decoder.forward(params, cfg, rows(tokens), rows(seen))
    return hidden.reshape(B, G, P + C, -1)[:, :, P - 1 : -1]


@functools.cache
def value_and_grad(function, cfg):
    """Hidden states, and the gradient of a random projection of them."""
    shape = (len(LENGTHS), G, C, cfg.width)
    weights = jax.random.normal(jax.random.key(4), shape)

    def loss(params):
        hidden = function(params, cfg, *group_batch(cfg))
        return jnp.sum(hidden * weights), hidden

    (_, hidden), grads = jit(jax.value_and_grad(loss, has_aux=True))(random_params(cfg))
    return hidden, {k: v for k, v in grads.items() if k != "head"}  # not used: 0


def assert_trees_close(found, expected, *, relative):
    """Every leaf agrees to `relative` times its largest entry."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found),
        jax.tree.leaves(expected),
        strict=True,
    ):
        atol = relative * np.abs(b).max()
        assert atol > 0, jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=str(path))


@pytest.mark.parametrize(
    "cfg",
    [TWO_LAYERS, QWEN, pytest.param(GEMMA, marks=pytest.mark.slow)],
    ids=["gemma3", "qwen3", "gemma3 of five layers"],
)
def test_sharing_the_prompt_equals_tiling_it(cfg):
    expected, expected_grads = value_and_grad(tiled_forward, cfg)
    found, grads = value_and_grad(decoder.group_forward, cfg)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert_trees_close(grads, expected_grads, relative=1e-5)


@pytest.mark.parametrize(
    "what", ["layers", pytest.param("attention", marks=pytest.mark.slow)]
)
def test_remat_changes_nothing(what):
    expected, expected_grads = value_and_grad(decoder.group_forward, QWEN)
    remat = functools.partial(decoder.group_forward, remat=what)
    found, grads = value_and_grad(remat, QWEN)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert_trees_close(grads, expected_grads, relative=1e-5)


# --- the released implementation's answers (tests/helpers/make_fixtures.py)


def fixture(name):
    cfg, params = model_answers.load(FIXTURES / name)
    params = jax.tree.map(jnp.asarray, params)
    with np.load(FIXTURES / name / "answers.npz") as answers:
        return cfg, params, {key: jnp.asarray(answers[key]) for key in answers}


@pytest.mark.parametrize(
    "name", ["gemma3", pytest.param("qwen3", marks=pytest.mark.slow), "qwen3_untied"]
)
def test_answers_equal_those_of_transformers(name):
    cfg, params, expected = fixture(name)
    tokens, mask = expected["tokens"], expected["mask"]
    new_tokens = expected["greedy"].shape[1]
    found = model_answers.answers(params, cfg, tokens, mask, new_tokens=new_tokens)
    gap = np.abs(found["logprobs"] - expected["logprobs"])[mask]
    assert gap.max() < 1e-4
    np.testing.assert_allclose(found["embeddings"], expected["embeddings"], atol=1e-4)
    np.testing.assert_array_equal(found["greedy"], expected["greedy"])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gemma3", {"window": 6}),
        pytest.param("gemma3", {"pattern": (LOCAL,)}, marks=pytest.mark.slow),
        ("gemma3", {"rope_factor": 1.0}),
        pytest.param("gemma3", {"rope_theta": 1e4}, marks=pytest.mark.slow),
        pytest.param("gemma3", {"rope_theta_local": 1e6}, marks=pytest.mark.slow),
        ("gemma3", {"query_scale": 0.0}),
        pytest.param("gemma3", {"activation": "silu"}, marks=pytest.mark.slow),
        ("qwen3_untied", {"rope_factor": 1.0}),
        pytest.param("qwen3", {"rope_theta": 1e4}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_fixtures_notice_every_field(name, change):
    """The test above can fail: a wrong field is far outside its tolerance."""
    cfg, params, expected = fixture(name)
    cfg = dataclasses.replace(cfg, **change)
    tokens, mask = expected["tokens"], expected["mask"]
    found = model_answers.logprobs(params, cfg, tokens, mask)
    gap = np.abs(found - expected["logprobs"])[expected["mask"]]
    assert gap.max() > 1e-2
