"""FLOPs by formula against XLA's count on the CPU, and against figures by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blue import flops, losses
from blue.models import decoder, encoder, gemma3, qwen3
from blue.models.decoder import GLOBAL, LOCAL, DecoderConfig

B, G, P, C = 3, 4, 48, 33
# Two layers are unrolled. Widths so that products are nearly all of the work; XLA also
# counts an elementwise operation as 1 FLOP, hence up to 3% more than the formula.
GEMMA = DecoderConfig(
    vocab_size=512, width=128, mlp_width=512, num_layers=2, num_heads=4, num_kv_heads=2,
    head_size=32, pattern=(LOCAL, LOCAL, GLOBAL), window=16, norm_plus_one=True,
    post_norms=True,
)  # fmt: skip
QWEN = dataclasses.replace(
    GEMMA, pattern=(GLOBAL,), num_layers=1, post_norms=False, norm_plus_one=False
)


def counted(function, *args):
    """XLA's count for shapes."""
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def shape(*dims, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(dims, dtype)


def params_of(cfg):
    return jax.eval_shape(lambda: decoder.init_params(cfg, jax.random.key(0)))


PROMPT = shape(B, P), shape(B, P, dtype=jnp.bool_)


def logprobs(params, cfg, prompt, mask, tokens, remat=False):
    hidden = decoder.group_forward(params, cfg, prompt, mask, tokens, remat=remat)
    head = decoder.head(params)
    return losses.token_logprobs(hidden, tokens, head, chunk=C).logprobs


@pytest.mark.parametrize("cfg", [GEMMA, QWEN], ids=["gemma", "qwen"])
@pytest.mark.parametrize("remat", [False, True])
def test_update_is_counted_as_xla_counts_it(cfg, remat):
    loss = lambda p, *x: logprobs(p, cfg, *x, remat=remat).mean()
    found = counted(jax.grad(loss), params_of(cfg), *PROMPT, shape(B, G, C))
    assert found == pytest.approx(flops.update(cfg, B, G, P, C, remat=remat), rel=0.05)
