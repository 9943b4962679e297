"""Splash attention against dense attention."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blue.models import (
    attention,
    decoder,
    encoder,
    flops,
    gemma3,
    qwen3,
    splash,
)
from blue.models.decoder import GLOBAL, LOCAL
from blue.runtime.hlo.flops import product_flops
from blue.runtime.hlo.memory import biggest_buffers
from blue.runtime.shapes import Precision, Shapes
from blue.runtime.sharding import abstract, by_batch, make_mesh, param_shardings
from blue.stages import plan

init_params = jax.jit(decoder.init_params, static_argnums=0)

# --- dense attention in parts


@functools.partial(jax.jit, static_argnums=2)
def causal_mask(queries, keys, window):
    return attention.causal_mask(queries, keys, window=window)


# --- splash, the kernel of TPUs


@pytest.mark.parametrize("window", [0, 1, 40, 128, 700])
@pytest.mark.parametrize("P, G, C", [(256, 2, 128), (128, 3, 256), (0, 1, 384)])
def test_a_static_mask_is_that_of_the_positions(P, G, C, window):
    """And so are the kernel's tiles; flops.py has a formula of its own for them."""
    at = P + jnp.arange(C)
    own = np.kron(np.eye(G), causal_mask(at, at, window)).astype(bool)
    prompt = causal_mask(at, jnp.arange(P), window)
    wanted = np.concatenate([np.tile(prompt, (G, 1)), own], axis=1)
    visible = splash.Visible(P, G, C, window)
    assert visible.shape == wanted.shape
    np.testing.assert_array_equal(visible[slice(None), slice(None)], wanted)
    np.testing.assert_array_equal(visible[64:100, 32:300], wanted[64:100, 32:300])
    T = visible.tile
    tiles = wanted.reshape(G * C // T, T, -1, T).any(axis=(1, 3))
    kernel = splash.make_kernel(visible, 1, interpret=True)
    assert np.count_nonzero(kernel.fwd_mask_info.block_mask) == tiles.sum()
    assert G * flops.tile_pairs(C, P, window) == tiles.sum() * T * T


def test_gradients_of_splash_are_those_of_dense_attention():
    """One key head; completions longer than the window, a prompt that is shorter, and
    one that is all padding; nothing of whole tiles."""
    B, G, P, C, N, K, H, window = 3, 2, 150, 71, 2, 1, 8, 48
    cfg = dataclasses.replace(
        gemma3.tiny_gemma3(), num_heads=N, num_kv_heads=K, head_size=H, window=window
    )
    mask = jnp.arange(P)[None] >= P - jnp.asarray([150, 30, 0])[:, None]
    normal = lambda n, *shape: jax.random.normal(jax.random.key(n), shape)
    q, weights = normal(0, B, G, C, N, H), normal(1, B, G, C, N, H)
    prompt = attention.KV(normal(2, B, P, K, H), normal(3, B, P, K, H))
    own = attention.KV(normal(4, B, G, C, K, H), normal(5, B, G, C, K, H))
    at = P + jnp.arange(C)
    see = attention.causal_mask(at, jnp.arange(P), window=window)
    see = jnp.broadcast_to((see[None] & mask[:, None])[:, None], (B, G, C, P))
    see_own = attention.causal_mask(at, at, window=window)[None, None]

    def dense(q, prompt, own):
        return attention.group_attention(
            q, prompt, own, see, see_own, scale=cfg.scale()
        )

    def by_kernel(q, prompt, own):
        pairs = (prompt.k, own.k), (prompt.v, own.v), (mask, jnp.ones((B, G, C), bool))
        return splash.attention(
            q, *pairs, scale=cfg.scale(), window=window, interpret=True
        )

    def run(attend):
        loss = lambda *x: (lambda y: ((y * weights).sum(), y))(attend(*x))
        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, prompt, own)

    assert_close(run(by_kernel), run(dense))


def rows_of(*families):
    """segment and parent of rows [R T], padded up to the longest row.

    A family is the length of a beginning (0 for none) and of what goes on from it.
    """
    rows = []
    for row in families:
        segment, parent, count = [], [], 0
        for begun, *lengths in row:
            root = count if begun else None
            for n in ([begun] if begun else []) + lengths:
                segment += [count] * n
                parent += [count if root is None else root] * n
                count += 1
        rows.append((segment, parent))
    longest = max(len(segment) for segment, _ in rows)
    fill = lambda x: jnp.asarray(x + [-1] * (longest - len(x)), jnp.int32)
    return [jnp.stack([fill(row[n]) for row in rows]) for n in (0, 1)]


def seen_in(segment, parent):
    """As encoder.py says it."""
    T, keys = segment.shape[1], segment[:, None, :]
    related = (keys == segment[:, :, None]) | (keys == parent[:, :, None])
    return related & jnp.tril(jnp.ones((1, T, T), bool))


def test_one_number_tells_what_a_slot_of_a_packed_row_sees():
    """To the last slot of the longest row, which are all bits of it."""
    T = splash.MOST_PACKED
    segment, parent = rows_of(
        [(T - 2, 1, 1)], [(0, T)], [(0, 1), (0, 2), (300, 1, 40, 7), (0, 9)],
        [(1, 500, 400), (60, 3, 1), (0, 5)], [(0, 1)] * T,
    )  # fmt: skip
    places = splash._places(segment, parent)[:, :, None]
    family = parent[:, :, None] == parent[:, None, :]
    found = splash._sees(places, jnp.arange(T)[None, None]) & family
    np.testing.assert_array_equal(found, seen_in(segment, parent))
    assert splash.can_number_slots(T) and not splash.can_number_slots(T + 1)


def test_gradients_of_splash_in_packed_rows_are_those_of_dense_attention():
    """Several tiles, some of one family alone; rows are no whole tiles."""
    segment, parent = rows_of(
        [(150, 20, 60, 3), (0, 30)], [(0, 140), (9, 90, 1)], [(0, 2)]
    )
    (R, T), N, K, H = segment.shape, 4, 2, 8
    assert T == 263 and splash.Visible(0, 1, splash.padded(T), 0).tile == 128
    normal = lambda n, *shape: jax.random.normal(jax.random.key(n), shape)
    qkv = normal(0, R, T, N, H), normal(1, R, T, K, H), normal(2, R, T, K, H)
    weights = normal(3, R, T, N, H) * (segment >= 0)[:, :, None, None]
    mask = seen_in(segment, parent)[:, None]

    def dense(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=0.3)

    def by_kernel(q, k, v):
        return splash.packed_attention(
            q, k, v, segment, parent, scale=0.3, interpret=True
        )

    def run(attend):
        loss = lambda *x: (lambda y: (y.sum(), y))(attend(*x) * weights)
        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*qkv)

    assert_close(run(by_kernel), run(dense))


def assert_close(found, wanted):
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


GEMMA = dataclasses.replace(
    gemma3.tiny_gemma3(), num_layers=1, num_kv_heads=1, pattern=(LOCAL,), window=48,
    width=32, mlp_width=32, vocab_size=64,
)  # fmt: skip

QWEN = dataclasses.replace(
    qwen3.tiny_qwen3(), num_layers=1, width=32, mlp_width=32, vocab_size=64
)


@pytest.mark.parametrize(
    "cfg, shape, real, mesh, gradients",
    [
        (QWEN, (4, 2, 130, 66), (130, 1, 40, 128), (1, 4, 2), False),
        pytest.param(
            GEMMA, (2, 2, 150, 71), (150, 30), None, True, marks=pytest.mark.slow
        ),
        pytest.param(
            QWEN, (4, 2, 130, 66), (130, 1, 40, 128), (1, 4, 2), True,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            GEMMA, (1, 3, 520, 129), (260,), None, True, marks=pytest.mark.slow
        ),
        pytest.param(
            dataclasses.replace(GEMMA, num_layers=3, pattern=(LOCAL, GLOBAL, LOCAL)),
            (4, 2, 64, 300), (64, 3, 10, 64), (2, 2, 2), True, marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_a_model_is_the_same_with_splash(
    cfg, shape, real, mesh, gradients, monkeypatch
):
    """A prompt and its completions; on a mesh the kernels go over rows and heads, and
    what they need for the backward pass is kept."""
    B, G, P, C = shape
    params = init_params(cfg, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 3)
    prompt = jax.random.randint(keys[0], (B, P), 0, cfg.vocab_size)
    tokens = jax.random.randint(keys[1], (B, G, C), 0, cfg.vocab_size)
    mask = jnp.arange(P)[None] >= P - jnp.asarray(real)[:, None]
    weights = jax.random.normal(keys[2], (B, G, C, cfg.width))

    def loss(params, remat):
        hidden = decoder.group_forward(params, cfg, prompt, mask, tokens, remat=remat)
        return (hidden * weights).sum(), hidden

    def run(params, remat):
        f = jax.grad(loss, has_aux=True) if gradients else loss
        return jax.jit(lambda p: f(p, remat))(params)

    wanted = run(params, "")
    monkeypatch.setattr(attention, "implementation_here", lambda **_: "splash")
    if mesh:
        mesh = make_mesh(*mesh)
        params = jax.device_put(params, param_shardings(params, mesh))
        with jax.set_mesh(mesh):
            assert_close(run(params, "attention"), wanted)
    else:
        assert_close(run(params, ""), wanted)


@pytest.mark.slow
def test_the_tpu_compiler_takes_the_kernels(monkeypatch):
    """No [queries, keys] array of the prompt lies in main memory; the FLOPs counted in
    the text are those of the formula, with every kernel once."""
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    cfg = dataclasses.replace(
        qwen3.tiny_qwen3(), num_layers=2, pattern=(LOCAL, GLOBAL), window=256,
        head_size=128, width=256, mlp_width=512,
    )  # fmt: skip
    B, G, P, C = 4, 2, 1024, 256
    mesh = make_mesh(1, 2, 2, devices=plan.topology("v6e:2x2")[1])
    shapes = jax.eval_shape(lambda: decoder.init_params(cfg, jax.random.key(0)))

    def loss(params, prompt, mask, tokens):
        hidden = decoder.group_forward(
            params, cfg, prompt, mask, tokens, dtype=jnp.bfloat16, remat="attention"
        )
        return hidden.astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        rows = lambda shape, dtype: jax.ShapeDtypeStruct(
            shape, dtype, sharding=by_batch(mesh)
        )
        args = rows((B, P), jnp.int32), rows((B, P), bool), rows((B, G, C), jnp.int32)
        params = abstract(shapes, param_shardings(shapes, mesh))
        lowered = jax.jit(jax.grad(loss)).lower(params, *args)
        text = str(lowered.compile().as_text())
    parts = flops.group_parts(cfg, Shapes(B, P, G, C), tiles=True)
    assert parts.attention == 0
    wanted = 3 * parts.trunk + 9 / 2 * parts.kernels
    assert 4 * product_flops(text) == pytest.approx(wanted, rel=0.05)
    assert not re.search(r"f32\[[\d,]*1024,1024\]", text)
    assert max(biggest_buffers(text), key=lambda b: b.bytes).bytes < P * P * 4


@pytest.mark.slow
def test_the_tpu_compiler_takes_the_kernel_of_packed_rows(monkeypatch):
    """Forward and backward, rows and heads split; counted as the formula does."""
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    cfg = dataclasses.replace(
        qwen3.tiny_qwen3(), num_layers=2, head_size=128, width=256, mlp_width=512
    )
    R, T = 4, 1024
    mesh = make_mesh(1, 2, 2, devices=plan.topology("v6e:2x2")[1])
    shapes = jax.eval_shape(lambda: decoder.init_params(cfg, jax.random.key(0)))

    def loss(params, *rows):
        precision = Precision("float32", "bfloat16", "attention")
        out = encoder.embed_packed(params, cfg, *rows, precision=precision)
        return out.sum()

    with jax.set_mesh(mesh):
        rows = [
            jax.ShapeDtypeStruct((R, n), jnp.int32, sharding=by_batch(mesh))
            for n in (T, T, T, T, 16)
        ]
        params = abstract(shapes, param_shardings(shapes, mesh))
        text = str(jax.jit(jax.grad(loss)).lower(params, *rows).compile().as_text())
    kernels = R * flops.attention(cfg, T, 0, flops.tile_pairs)
    wanted = 3 * flops.trunk(cfg, R * T) + 9 / 2 * kernels
    assert 4 * product_flops(text) == pytest.approx(wanted, rel=0.05)
    assert not re.search(rf"f32\[[\d,]*{T},{T}\]", text)
