import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from blue.models import attention, decoder, gemma3, qwen3
from blue.models.attention import attention_implementation

CARD = {"platform": "cuda", "compute_capability": (9, 0), "num_devices": 1}
SHAPE = {"dtype": "bfloat16", "head_size": 256, "query_tokens": 2048}
SHAPE["key_tokens"] = 2048


@pytest.mark.parametrize(
    "change, chosen",
    [
        ({}, "cudnn"),
        ({"dtype": "float16"}, "cudnn"),
        ({"dtype": "float32"}, None),
        ({"platform": "tpu"}, None),
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
def test_cudnn_serves_where_it_can(change, chosen):
    arguments = CARD | SHAPE | change
    assert attention_implementation(**arguments) == chosen


@pytest.mark.parametrize("preset", [gemma3.gemma3_1b, qwen3.qwen3_1_7b])
def test_the_heads_of_the_presets_are_served_on_hopper(preset):
    size = {"head_size": preset().head_size}
    assert attention_implementation(**CARD | SHAPE | size) == "cudnn"


def test_a_cpu_keeps_the_kernel_of_xla():
    q = jnp.zeros((1, 2, 2, 8), jnp.bfloat16)
    assert attention.implementation_here(q, q) is None


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
    on_a_card = lambda q, k: attention_implementation(
        **CARD, dtype=q.dtype, head_size=q.shape[-1], query_tokens=q.shape[1],
        key_tokens=k.shape[1],
    )  # fmt: skip
    monkeypatch.setattr(attention, "implementation_here", on_a_card)
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91100)
    forward = "__cudnn$fmhaScaleBiasSoftmax"
    assert calls() == {forward, f"{forward}Backward"}
