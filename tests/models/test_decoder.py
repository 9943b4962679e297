"""The decoder: sizes, causality, padding, and its four passes against each other."""

import dataclasses
import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blue.errors import UserError
from blue.models import decoder, decoding, encoder, families, gemma3, qwen3
from blue.models.decoder import GLOBAL, LOCAL
from tests.helpers import model_answers

FIXTURES = Path(__file__).parents[1] / "fixtures"
SMALL = {"vocab_size": 32, "width": 16, "mlp_width": 24, "head_size": 8, "window": 4}
# one whole period under the scan needs two of them: 4 layers scanned, 1 left over
GEMMA = dataclasses.replace(
    gemma3.tiny_gemma3(),
    **SMALL,
    num_layers=5,
    pattern=(LOCAL, GLOBAL),
    rope_factor=8.0,
)
QWEN = dataclasses.replace(qwen3.tiny_qwen3(), **SMALL, num_layers=2, tied=False)
TWO_LAYERS = dataclasses.replace(GEMMA, num_layers=2)
FAMILIES = pytest.mark.parametrize("cfg", [GEMMA, QWEN], ids=["gemma3", "qwen3"])
SHALLOW = pytest.mark.parametrize("cfg", [TWO_LAYERS, QWEN], ids=["gemma3", "qwen3"])
# these run once: compiling is what takes the time
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random_params(cfg, seed=0):
    """Norms that differ from one another, and matrices that let through what comes."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(
        lambda key: decoder.init_params(cfg, key), jax.random.key(0)
    )

    def leaf(path, shape):
        norm = path[-1].key == "weight"
        center = 0.0 if cfg.norm_plus_one or not norm else 1.0
        return jnp.asarray(rng.normal(center, 0.25, shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def random_tokens(cfg, shape, seed=0):
    tokens = np.random.default_rng(seed).integers(0, cfg.vocab_size, shape)
    return jnp.asarray(tokens, jnp.int32)


def right_aligned(lengths, width):
    return jnp.arange(width)[None] >= width - jnp.asarray(lengths)[:, None]


# --- sizes


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gemma3_270m", 268_098_176),
        ("gemma3_1b", 999_885_952),
        ("gemma3_4b", 3_880_263_168),
        ("gemma3_12b", 11_766_034_176),
        ("gemma3_27b", 27_009_346_304),
        ("qwen3_0_6b", 596_049_920),
        ("qwen3_1_7b", 1_720_574_976),
        ("qwen3_4b", 4_022_468_096),
        ("qwen3_8b", 8_190_735_360),
        ("qwen3_14b", 14_768_307_200),
        ("qwen3_32b", 32_762_123_264),
        ("qwen3_embedding_0_6b", 595_776_512),
    ],
)
def test_presets_have_the_published_number_of_parameters(name, count):
    assert decoder.param_count(families.preset(name)) == count


@pytest.mark.parametrize(
    ("file", "preset"),
    [
        ("gemma-3-1b-it", gemma3.gemma3_1b),
        ("gemma-3-4b-it", gemma3.gemma3_4b),
        ("qwen3-0.6b", qwen3.qwen3_0_6b),
        ("qwen3-1.7b", qwen3.qwen3_1_7b),
        ("qwen3-embedding-0.6b", qwen3.qwen3_embedding_0_6b),
    ],
)
def test_released_configs_give_the_presets(file, preset):
    if "BLUE_TEST_DATA" not in os.environ:
        pytest.skip("needs BLUE_TEST_DATA, the folder with model_configs/")
    folder = Path(os.environ["BLUE_TEST_DATA"]) / "model_configs"
    config = json.loads((folder / f"{file}.config.json").read_text())
    family = families.of_model_type(config["model_type"])
    assert family.from_config(config) == preset()


@pytest.mark.parametrize("name", families.presets())
def test_presets_survive_their_config_json(name):
    cfg = families.preset(name)
    family = families.of(cfg)
    assert family == (gemma3 if "gemma3" in name else qwen3)
    assert family.from_config(json.loads(json.dumps(family.to_config(cfg)))) == cfg


def test_unknown_presets_are_told_the_known_ones():
    with pytest.raises(UserError, match=r"'gemma4'.*gemma3_1b.*qwen3_1_7b"):
        families.preset("gemma4")


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


# --- a prompt and its completions: prompts and completions outgrow the window of 4

LENGTHS, P, G, C = [7, 3, 1], 7, 2, 6


def group_batch(cfg):
    B = len(LENGTHS)
    prompt = random_tokens(cfg, (B, P), seed=2)
    completions = random_tokens(cfg, (B, G, C), seed=3)
    return prompt, right_aligned(LENGTHS, P), completions


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


@FAMILIES
def test_sharing_the_prompt_equals_tiling_it(cfg):
    expected, expected_grads = value_and_grad(tiled_forward, cfg)
    found, grads = value_and_grad(decoder.group_forward, cfg)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert_trees_close(grads, expected_grads, relative=1e-5)


@pytest.mark.parametrize("what", ["layers", "attention"])
def test_remat_changes_nothing(what):
    expected, expected_grads = value_and_grad(decoder.group_forward, QWEN)
    remat = functools.partial(decoder.group_forward, remat=what)
    found, grads = value_and_grad(remat, QWEN)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert_trees_close(grads, expected_grads, relative=1e-5)


@pytest.mark.parametrize(
    "cfg, starts",
    [(GEMMA, None), (GEMMA, (0, 2, 5)), (QWEN, None)],
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


# --- the released implementation's answers (tests/helpers/make_fixtures.py)


def fixture(name):
    cfg, params = model_answers.load(FIXTURES / name)
    params = jax.tree.map(jnp.asarray, params)
    with np.load(FIXTURES / name / "answers.npz") as answers:
        return cfg, params, {key: jnp.asarray(answers[key]) for key in answers}


@pytest.mark.parametrize("name", ["gemma3", "qwen3", "qwen3_untied"])
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
        ("gemma3", {"pattern": (LOCAL,)}),
        ("gemma3", {"rope_factor": 1.0}),
        ("gemma3", {"rope_theta": 1e4}),
        ("gemma3", {"rope_theta_local": 1e6}),
        ("gemma3", {"query_scale": 0.0}),
        ("gemma3", {"activation": "silu"}),
        ("qwen3", {"rope_theta": 1e4}),
        ("qwen3_untied", {"rope_factor": 1.0}),
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
