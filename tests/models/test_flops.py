"""FLOPs by formula against XLA's count on the CPU, and against figures by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blue.inference import sampling
from blue.models import attention, decoder, decoding, flops, gemma3, qwen3
from blue.models.decoder import GLOBAL, LOCAL, DecoderConfig, Lora
from blue.models.logprobs import token_logprobs
from blue.runtime.shapes import Precision, Shapes
from blue.training.contrastive import contrastive_gradients

SIZES = Shapes(batch=2, prompt=48, group=4, completion=33)
B, P, G, C = SIZES
# One layer, or two of different kinds, are unrolled: XLA counts a loop's body once. It
# also counts an elementwise operation as 1 FLOP: 1 to 3% at these widths, so 5% here.
QWEN = DecoderConfig(
    family="qwen3", vocab_size=512, width=128, mlp_width=512, num_layers=1, num_heads=4,
    num_kv_heads=2, head_size=32,
)  # fmt: skip
GEMMA = dataclasses.replace(
    QWEN, num_layers=2, pattern=(LOCAL, GLOBAL, GLOBAL), window=16, post_norms=True
)
CLOSE = {"rel": 0.05}


def counted(function, *args):
    """XLA's count for shapes."""
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def shape(*dims, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(dims, dtype)


def params_of(cfg):
    return jax.eval_shape(lambda: decoder.init_params(cfg, jax.random.key(0)))


PROMPT = shape(B, P), shape(B, P, dtype=jnp.bool_)


def logprobs(params, cfg, prompt, mask, tokens, remat=""):
    hidden = decoder.group_forward(params, cfg, prompt, mask, tokens, remat=remat)
    head = decoder.head(params)
    return token_logprobs(hidden, tokens, head, chunk=C).logprobs


def test_reference_and_prefill_are_counted_as_xla_counts_them():
    run = lambda p, *x: logprobs(p, GEMMA, *x)
    found = counted(run, params_of(GEMMA), *PROMPT, shape(B, G, C))
    assert found == pytest.approx(flops.reference(GEMMA, SIZES), **CLOSE)
    run = lambda p, *x: decoding.prefill(decoding.unstack_layers(p), QWEN, *x)
    found = counted(run, params_of(QWEN), *PROMPT)
    assert found == pytest.approx(flops.prefill(QWEN, SIZES), **CLOSE)


@pytest.mark.parametrize(
    "cfg, remat",
    [
        (GEMMA, "layers"),
        (QWEN, "attention"),
        pytest.param(QWEN, "layers", marks=pytest.mark.slow),
        pytest.param(QWEN, "", marks=pytest.mark.slow),
    ],
)
def test_update_is_counted_as_xla_counts_it(cfg, remat):
    loss = lambda p, *x: logprobs(p, cfg, *x, remat=remat).mean()
    found = counted(jax.grad(loss), params_of(cfg), *PROMPT, shape(B, G, C))
    assert found == pytest.approx(flops.update(cfg, SIZES, remat=remat), **CLOSE)


def test_long_prompts_are_counted_in_parts():
    """What no query of a part sees is not computed, nor what no completion sees."""
    P = attention.LONG
    prompt = shape(1, P), shape(1, P, dtype=jnp.bool_)
    loss = lambda p, *x: logprobs(p, GEMMA, *x).mean()
    found = counted(jax.grad(loss), params_of(GEMMA), *prompt, shape(1, G, C))
    wanted = flops.update(GEMMA, Shapes(1, P, G, C), remat="")
    assert found == pytest.approx(wanted, **CLOSE)
    whole = 4 * 4 * 32 * (P * P + G * (C - 1) * (P + C - 1))  # of one layer
    parts = flops.group_parts(GEMMA, Shapes(1, P, G, C))
    assert parts.attention < 0.6 * GEMMA.num_layers * whole


def test_decode_step_is_counted_as_xla_counts_it():
    def run(params, prompt_mask, kv, cache, tokens, slot):
        params = decoding.unstack_layers(params)
        model = sampling.sampler_model(params, QWEN, group=G, length=C, dtype="float32")
        hidden, state = model.step(tokens, slot, (prompt_mask, kv, cache))
        return model.logits(hidden), state

    kv = [decoding.Cache(*2 * (shape(B, 2, P, 32, dtype=jnp.float32),))]
    cache = jax.eval_shape(lambda: decoding.init_cache(QWEN, B, G, C))
    found = counted(run, params_of(QWEN), PROMPT[1], kv, cache, shape(B, G), shape())
    assert found == pytest.approx(flops.decode_step(QWEN, SIZES), **CLOSE)


def test_encoder_update_is_counted_as_xla_counts_it():
    gradients = contrastive_gradients(
        QWEN,
        Precision("float32", "float32", "layers"),
        similarity_temperature=0.1,
    )
    rows, pairs = 24, 16
    arrays = (*(shape(rows, P) for _ in range(4)), shape(rows, 16), shape(2 * pairs))
    found = counted(gradients, params_of(QWEN), {}, *arrays, shape(pairs))
    expected = flops.encoder_update(QWEN, pairs, rows, P, remat="layers")
    assert found == pytest.approx(expected, **CLOSE)


def test_visible_pairs_are_those_of_the_mask():
    cases = [(7, 0, 0), (7, 5, 0), (9, 0, 4), (9, 3, 4), (3, 9, 4), (3, 0, 8)]
    for queries, before, window in cases:
        keys = np.arange(before + queries)
        back = keys[before:, None] - keys[None]
        mask = (back >= 0) & (back < window) if window else back >= 0
        assert flops.visible_pairs(queries, before, window) == mask.sum()


# --- by hand: 64 chips, 512 sequences, prompt 2048, completion 512, Gemma3-1B. The
# figures of another framework's programs, which tile the prompt to 8 sequences a chip;
# its compiled programs have 36.62, 27.29 and 164.7 TFLOP a chip.

CFG = gemma3.gemma3_1b()


def whole(queries, keys):
    """Attention of so many queries, each over so many keys: 4 heads of 256."""
    return 4.0 * 26 * 4 * 256 * queries * keys


def tiled(C):
    """Trunk, attention and head of completions, of 8 sequences of 2048 + C tokens."""
    tokens = 8 * (2048 + C)
    return flops.Parts(
        flops.trunk(CFG, tokens),
        whole(tokens, 2048 + C),
        flops.head(CFG, 8 * C),
    )


def test_tiled_programs_by_hand():
    assert sum(tiled(512)) == pytest.approx(36.64e12, rel=1e-3)
    prompt = 8 * 2048  # over a cache that has room for the completion
    prefill = flops.trunk(CFG, prompt) + whole(prompt, 2560)
    assert prefill + flops.head(CFG, 8) == pytest.approx(27.33e12, rel=1e-3)
    for length, by_hand in ((512, 163.9e12), (2048, 289.6e12)):
        parts = tiled(length)  # its head's backward pass is over prompts, too
        backward = 2 * flops.head(CFG, 8 * (2048 + length))
        found = 4 * (parts.trunk + parts.attention) + parts.head + backward
        assert found == pytest.approx(by_hand, rel=1e-3)


def test_ours_by_hand():
    """One user a chip: 698 M of matrices on 2048 + 8 * 511 tokens"""
    parts = flops.group_parts(CFG, Shapes(1, 2048, 8, 512))
    assert parts.trunk == 2 * 697_761_792 * 6136
    # 22 local layers with a window of 512, 4 global ones; the prompt in four parts
    local = 512 * (512 + 3 * (511 + 512)) + 4088 * (511 + 511)
    everything = 512 * (512 + 1024 + 1536 + 2048) + 4088 * (2048 + 511)
    assert parts.attention == 4 * 1024 * (22 * local + 4 * everything)
    assert parts.head == 2 * 1152 * 262144 * 4096
    once = flops.update(CFG, Shapes(1, 2048, 8, 512), remat="")
    assert once == 3 * sum(parts) + parts.head
    again = flops.update(CFG, Shapes(1, 2048, 8, 512), remat="layers") - once
    assert again == parts.trunk + parts.attention
    # 512 positions in chunks of 40: 520; users add up
    chunked = flops.group_parts(CFG, Shapes(3, 2048, 8, 512), chunk=40)
    assert chunked.head == 3 * parts.head * 520 / 512 and chunked[:2] == (
        3 * parts.trunk,
        3 * parts.attention,
    )
    # triangles and, in 22 layers of 26, bands of 512
    masked = flops.group_parts(CFG, Shapes(1, 2048, 8, 512), masked=True)
    assert masked.trunk == parts.trunk and masked.head == parts.head
    in_all = 2048 * 2049 // 2 + 8 * (511 * 2048 + 511 * 512 // 2)
    in_band = (2048 * 512 - 512 * 511 // 2) + 8 * 511 * 512
    assert masked.attention == 4 * 1024 * (4 * in_all + 22 * in_band)


def test_whole_tiles_by_hand():
    """Of 512 x 512: 4 rows of a prompt, and one of each completion after them. Short
    blocks stay dense, as on the chip."""
    parts = flops.group_parts(CFG, Shapes(1, 2048, 8, 512), tiles=True)
    local, all_keys = (1 + 2 + 2 + 2) + 8 * 2, (1 + 2 + 3 + 4) + 8 * 5
    assert parts.kernels == 4 * 1024 * 512**2 * (22 * local + 4 * all_keys)
    assert parts.attention == 0
    rest = 3 * (parts.trunk + parts.head) + parts.head
    update = functools.partial(flops.update, CFG, Shapes(1, 2048, 8, 512), tiles=True)
    assert update(remat="attention") == rest + parts.kernels / 2 * (2 + 7)
    again = update(remat="layers") - update(remat="attention")
    assert again == parts.trunk + parts.kernels
    assert flops.encode(CFG, 3, 128, tiles=True) == flops.encode(CFG, 3, 128)
    # 600 keys of 640: 5 rows of 128
    text = flops.encode(CFG, 1, 600, tiles=True) - flops.trunk(CFG, 600)
    tiles = 22 * (1 + 2 + 3 + 4 + 5) + 4 * 15
    assert text == 4 * 1024 * 128**2 * tiles


def test_small_programs_by_hand():
    cfg = dataclasses.replace(QWEN, window=0)
    matrices = 2 * (128 * 32 * (4 + 4 + 2 + 2) + 3 * 128 * 512)
    text = 10 * matrices + 4 * 4 * 32 * 10 * 10
    assert flops.encode(cfg, 3, 10) == 3 * text
    assert flops.encode(cfg, 1, 10, masked=True) == 10 * matrices + 4 * 4 * 32 * 55
    assert flops.choice(cfg, 3, 10, 5) == 3 * (text + 2 * 128 * 5)
    assert flops.ranking(users=7, items=1000, width=8) == 2 * 7 * 1000 * 8
    assert flops.relayout() == 0
    steps = flops.rollout(cfg, Shapes(3, 10, 2, 4)) - flops.prefill(cfg, Shapes(3, 10))
    assert steps == 4 * flops.decode_step(cfg, Shapes(3, 10, 2, 4))
    caches = 2 * 2 * 32 * 3 * (10 + 2 * 4)
    weights = matrices / 2 + 512 * 128
    assert flops.decode_bytes(cfg, Shapes(3, 10, 2, 4)) == 2 * (weights + caches)
    local = dataclasses.replace(cfg, pattern=(LOCAL,), window=6)
    caches = 2 * 2 * 32 * 3 * (6 + 2 * 4)
    assert flops.decode_bytes(local, Shapes(3, 10, 2, 4)) == 2 * (weights + caches)
    saved = flops.decode_step(cfg, Shapes(3, 10, 2, 8)) - flops.decode_step(
        local, Shapes(3, 10, 2, 8)
    )
    assert saved == 4 * 4 * 32 * 3 * 2 * (4 + 2)


def test_matrices_are_all_parameters_but_vectors():
    for cfg in (CFG, qwen3.qwen3_1_7b()):
        vectors = cfg.num_layers * (4 * cfg.width + 2 * cfg.head_size) + cfg.width
        most = flops.trunk(cfg, 1) / 2 + flops.head(cfg, 1) / 2
        assert 0 <= decoder.param_count(cfg) - most <= vectors


def test_adapters_leave_out_the_gradients_of_matrices():
    cfg = dataclasses.replace(QWEN, lora=Lora(4, 8.0, ("q",)))
    parts = flops.group_parts(cfg, SIZES)
    saved = flops.update(QWEN, SIZES, remat="layers")
    saved -= flops.update(cfg, SIZES, remat="layers")
    assert saved == parts.trunk + parts.head
