import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from blue.models import (
    attention,
    decoder,
    decoding,
    gemma3,
    qwen3,
)
from blue.models.attention import attention_implementation

init_params = jax.jit(decoder.init_params, static_argnums=0)
CARD = {"platform": "cuda", "compute_capability": (9, 0), "num_devices": 1}
SHAPE = {"dtype": "bfloat16", "head_size": 256, "query_tokens": 2048}
SHAPE["key_tokens"] = 2048


@pytest.mark.parametrize(
    "change, chosen",
    [
        ({}, "cudnn"),
        ({"dtype": "float16"}, "cudnn"),
        ({"dtype": "float32"}, None),
        ({"platform": "tpu"}, "splash"),
        ({"platform": "tpu", "num_devices": 64, "dtype": "float32"}, "splash"),
        ({"platform": "tpu", "query_tokens": 511, "key_tokens": 2559}, "splash"),
        ({"platform": "tpu", "query_tokens": 64}, None),  # a tile less than half full
        ({"platform": "tpu", "query_tokens": 256, "key_tokens": 256}, None),
        ({"platform": "tpu", "head_size": 64}, None),
        ({"platform": "gpu"}, None),  # AMD
        ({"compute_capability": (8, 0)}, None),  # Gemma's heads on an A100
        ({"compute_capability": (8, 0), "head_size": 128}, "cudnn"),
        ({"compute_capability": (7, 5), "head_size": 128}, None),
        ({"compute_capability": (12, 0)}, "cudnn"),
        ({"head_size": 512}, None),
        ({"head_size": 100}, None),
        ({"query_tokens": 2047}, None),
        ({"key_tokens": 2047}, None),
        ({"num_devices": 2}, None),
    ],
)
def test_kernels_serve_where_they_can(change, chosen):
    arguments = CARD | SHAPE | change
    assert attention_implementation(**arguments) == chosen


@pytest.mark.parametrize("preset", [gemma3.gemma3_1b, qwen3.qwen3_1_7b])
def test_the_heads_of_the_presets_are_served_on_hopper(preset):
    size = {"head_size": preset().head_size}
    assert attention_implementation(**CARD | SHAPE | size) == "cudnn"


def test_a_cpu_keeps_the_kernel_of_xla():
    assert attention.implementation_here(**SHAPE) is None


def test_forward_and_backward_are_lowered_to_cudnn_for_a_gpu(monkeypatch):
    """Lowering needs no GPU; only whether cuDNN is there has to be made up."""
    cfg = dataclasses.replace(
        qwen3.tiny_qwen3(), num_layers=1, head_size=64, pattern=("global",)
    )
    params = jax.eval_shape(
        lambda: decoder.init_params(cfg, jax.random.key(0), "bfloat16")
    )
    tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32)
    mask = jax.ShapeDtypeStruct((2, 16), jnp.bool_)

    def calls():
        def loss(params, tokens, mask):
            out = decoder.forward(params, cfg, tokens, mask, dtype=jnp.bfloat16)
            return out.astype(jnp.float32).sum()

        traced = jax.jit(jax.grad(loss)).trace(params, tokens, mask)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        return set(re.findall(r"@(__cudnn\$\w+)", text))

    assert not calls()
    on_a_card = functools.partial(attention_implementation, **CARD)
    monkeypatch.setattr(attention, "implementation_here", on_a_card)
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91100)
    forward = "__cudnn$fmhaScaleBiasSoftmax"
    assert calls() == {forward, f"{forward}Backward"}


# --- dense attention in parts


@functools.partial(jax.jit, static_argnums=2)
def causal_mask(queries, keys, window):
    return attention.causal_mask(queries, keys, window=window)


@pytest.mark.parametrize("window", [1, 7, 300])
@pytest.mark.parametrize(
    "queries, keys", [(512, 512), (515, 515), (1, 40), (600, 700), (1300, 1300)]
)
def test_parts_leave_out_what_nobody_sees_and_no_more(queries, keys, window):
    for limit in (window, 0):
        at = np.arange(keys)
        see = np.array(causal_mask(at[keys - queries :], at, limit))
        parts = attention.visible_parts(queries, keys, limit)
        if queries < attention.LONG:
            assert len(parts) == 1
        elif limit:  # no longer than window or 256: the work is linear in queries
            assert max(own.stop - own.start for own, _ in parts) <= max(limit, 256)
        else:
            assert len(parts) == attention.PARTS
        for own, seen in parts:
            assert see[own, seen][:, 0].any() and see[own, seen][:, -1].any()
            see[own, seen] = False
        assert not see.any()


@pytest.mark.parametrize(
    "family, window",
    [
        (gemma3.tiny_gemma3, 9),
        pytest.param(qwen3.tiny_qwen3, 0, marks=pytest.mark.slow),
        pytest.param(gemma3.tiny_gemma3, 1, marks=pytest.mark.slow),
    ],
)
def test_attention_in_parts_is_that_of_the_whole(family, window, monkeypatch):
    """Gradients, too. Of four parts the last is shorter; windows are longer and shorter
    than a part, prompts shorter than both; one is a single token."""
    B, G, P, C = 3, 2, 22, 6
    key = jax.random.key(1)
    tokens = jax.random.randint(key, (B, P), 0, 64)
    mask = jnp.arange(P)[None] >= P - jnp.asarray([P, 5, 1])[:, None]
    completions = jax.random.randint(key, (B, G, C), 0, 64)
    cfg = dataclasses.replace(
        family(), num_layers=2, width=32, mlp_width=32, vocab_size=64, head_size=8,
        pattern=family().pattern[-2:], window=window,
    )  # fmt: skip
    params = init_params(cfg, jax.random.key(0))
    weights = jax.random.normal(key, (B, G, C, cfg.width))

    def loss(params):
        hidden = decoder.group_forward(params, cfg, tokens, mask, completions)
        return (hidden * weights).sum(), hidden

    def run(params):
        layers = decoding.unstack_layers(params)
        last, _ = decoding.prefill(layers, cfg, tokens, mask)
        return jax.grad(loss, has_aux=True)(params), last

    whole = jax.jit(lambda p: run(p))(params)
    monkeypatch.setattr(attention, "LONG", P)
    assert_close(jax.jit(lambda p: run(p))(params), whole)


def assert_close(found, wanted):
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
