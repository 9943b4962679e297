"""Jitted programs: the same step on any mesh, micro-batches, no late compilation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from blue.inference import sampling, scoring
from blue.inference.packing import RowShapes
from blue.models import encoder, gemma3, qwen3
from blue.models.params import abstract_params, make_init
from blue.runtime import programs
from blue.runtime.shapes import Precision, Sampling, Shapes
from blue.runtime.sharding import AXES, by_batch, put, replicated, to_host
from blue.stages import train_encoder
from blue.training import losses, optimizers
from blue.training.contrastive import make_encoder_update, row_counts
from blue.training.optimizers import apply_gradients, make_optimizer, make_schedule
from blue.training.policy import Objective, UpdateBatch, make_update
from tests.helpers.small_model import one_a_row

B, G, P, C = 8, 3, 12, 6
MESHES = [(1, 8, 1), (2, 2, 2), pytest.param((1, 2, 4), marks=pytest.mark.slow)]

SHAPES, FLOAT32 = Shapes(B, P, G, C), Precision("float32", "float32")


def mesh_of(shape):
    count = int(np.prod(shape))
    return Mesh(np.asarray(jax.devices()[:count]).reshape(shape), AXES)


def small(family, layers=1):
    return dataclasses.replace(
        family(), vocab_size=64, width=32, mlp_width=48, head_size=8, window=5,
        num_layers=layers, pattern=family().pattern[-2:],
    )  # fmt: skip


def make_run(cfg, mesh, micro=0):
    """State and update program on a mesh, from the same seed."""
    params, init_state, update = programs_of(cfg, mesh, micro)
    return params, init_state(params), update


@functools.cache
def programs_of(cfg, mesh, micro):
    """Parameters, and the programs that make a state of them and update it."""
    schedule = make_schedule(1e-3, kind="constant", warmup_steps=0, num_steps=5)
    # Adam's first step is g / (|g| + eps): a smaller eps would show the rounding of
    # gradients that are all but zero
    optimizer = make_optimizer(schedule, b1=0.9, b2=0.95, eps=1e-6, grad_clip=1.0)
    params = make_init(cfg, mesh, "float32")(np.uint32(3))
    shapes = abstract_params(cfg, mesh, "float32")
    init_state = optimizers.make_init_state(shapes, optimizer, mesh)
    update = make_update(
        cfg, mesh, optimizer, schedule, SHAPES, FLOAT32._replace(remat="layers"),
        Objective(temperature=1.0, clip_eps=0.2, kl_coef=0.05), micro,
    )  # fmt: skip
    return params, init_state, update


def batch_on(mesh, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, C + 1, (B, G))
    prompt_lengths = rng.integers(3, P + 1, B)
    host = UpdateBatch(
        prompt=rng.integers(0, 64, (B, P)).astype(np.int32),
        prompt_mask=np.arange(P)[None] >= P - prompt_lengths[:, None],
        tokens=rng.integers(0, 64, (B, G, C)).astype(np.int32),
        mask=np.arange(C) < lengths[..., None],
        sampler_logprobs=-rng.random((B, G, C)).astype(np.float32),
        ref_logprobs=-4 * rng.random((B, G, C)).astype(np.float32),
        advantages=rng.normal(size=(B, G)).astype(np.float32),
        teaching=rng.random((B, G)) < 0.9,
    )
    return put(host, by_batch(mesh))


@pytest.fixture(scope="module")
def one_device():
    out = {}
    for family in (gemma3.tiny_gemma3, qwen3.tiny_qwen3):
        mesh = mesh_of((1, 1, 1))
        _, state, update = make_run(small(family), mesh)
        out[family] = to_host(update(state, {}, batch_on(mesh)))
    return out


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_one_step_is_the_same_on_any_mesh(shape, one_device):
    family = gemma3.tiny_gemma3 if shape[2] > 1 else qwen3.tiny_qwen3
    mesh = mesh_of(shape)
    _, state, update = make_run(small(family), mesh)
    if mesh.shape["fsdp"] > 1:  # parameters really are split
        q = state.params["layers"]["q"]
        assert q.addressable_shards[0].data.size < q.size
    new, info = to_host(update(state, {}, batch_on(mesh)))
    want, want_info = one_device[family]
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    jax.tree.map(close, new.params, want.params)
    jax.tree.map(close, new.opt_state, want.opt_state)  # the gradients, exactly
    jax.tree.map(close, info, want_info)
    assert info["optim/grad_norm"] > 1e-3


@pytest.mark.parametrize("micro", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_micro_batches_add_up(micro, one_device):
    mesh = mesh_of((1, 1, 1))
    _, state, update = make_run(small(qwen3.tiny_qwen3), mesh, micro=micro)
    new, info = to_host(update(state, {}, batch_on(mesh)))
    want, want_info = one_device[qwen3.tiny_qwen3]
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    jax.tree.map(close, new.params, want.params)
    jax.tree.map(close, info, want_info)


def test_the_reference_pass_may_go_a_few_prompts_at_a_time():
    """And every device works on each of them."""
    cfg, mesh = small(gemma3.tiny_gemma3), mesh_of((1, 4, 2))
    params = make_init(cfg, mesh, "float32")(np.uint32(3))
    batch, found = batch_on(mesh), []
    for micro in (0, 4):
        run = scoring.make_completion_logprobs(
            cfg, mesh, SHAPES, FLOAT32, temperature=1.0, microbatch=micro
        )
        found.append(
            to_host(run(params, batch.prompt, batch.prompt_mask, batch.tokens))
        )
    assert len(set(found[0].ravel().tolist())) > B
    np.testing.assert_allclose(*found, atol=1e-5)


def test_degenerate_batches_give_finite_updates():
    """Whatever takes no part is as if it were not there; nothing becomes NaN."""
    mesh, cfg = mesh_of((1, 1, 1)), small(qwen3.tiny_qwen3)
    _, state, update = make_run(cfg, mesh)
    before, batch = to_host(state), to_host(batch_on(mesh))
    batch = jax.tree.map(np.array, batch)  # to be written to
    row = lambda *shape: np.zeros(shape, bool)
    batch.prompt_mask[1] = False  # a row of padding alone
    batch.mask[2], batch.mask[2, :, 0] = False, True  # the end token comes first
    batch.mask[3] = True  # at the limit, without an end
    batch.mask[4], batch.mask[5, 1] = False, False  # no token at all
    batch.teaching[:], batch.teaching[6], batch.teaching[7, 0] = True, False, False

    def run(changes):
        start = put(before, replicated(mesh))  # a copy: updates donate it
        return to_host(update(start, {}, put(batch._replace(**changes), rows)))

    rows = by_batch(mesh)
    new, info = run({})
    assert new.skipped == 0 and info["optim/grad_norm"] > 1e-3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((new, info)))
    # what could not be scored may carry any numbers
    out = ~batch.teaching
    nan = lambda x: np.where(out.reshape(B, G, *[1] * (x.ndim - 2)), np.nan, x)
    names = ("ref_logprobs", "sampler_logprobs", "advantages")
    same, same_info = run({n: nan(getattr(batch, n)) for n in names})
    jax.tree.map(np.testing.assert_array_equal, (same, same_info), (new, info))
    # nobody teaches: skipped and counted, not a bit changes
    none, info = run({"teaching": row(B, G)})
    assert none.skipped_in_row == 1 and np.isnan(info["policy/loss"])
    jax.tree.map(np.testing.assert_array_equal, none.params, before.params)
    # all rewards equal: the KL is all there is
    zeros = {"advantages": np.zeros((B, G), np.float32), "teaching": ~row(B, G)}
    same, info = run(zeros)
    want = 0.05 * info["policy/kl"]
    assert same.skipped == 0
    np.testing.assert_allclose(info["policy/loss"], want, rtol=1e-5)


def test_sampling_and_encoding_are_the_same_on_any_mesh():
    cfg = small(gemma3.tiny_gemma3, layers=2)
    results = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh = mesh_of(shape)
        params = make_init(cfg, mesh, "float32")(np.uint32(3))
        draws = Sampling(1.0, top_k=0, top_p=1.0, end_ids=(1,), pad_id=0)
        sample = sampling.make_sample(cfg, mesh, SHAPES, draws, "float32")
        embed = scoring.make_embed(cfg, mesh, RowShapes(B, P, 1), FLOAT32)
        relayout = sampling.make_relayout(cfg, mesh, FLOAT32)
        batch = batch_on(mesh)
        ids = put(np.arange(B, dtype=np.int32), by_batch(mesh))
        seeds = np.array([0, 1, 2], np.uint32)
        rollout = sample(relayout(params), batch.prompt, batch.prompt_mask, ids, seeds)
        texts = one_a_row(*to_host((batch.prompt, batch.prompt_mask)))
        vectors = embed(params, *put(texts, by_batch(mesh)))[:, 0]
        results.append(to_host((rollout, vectors)))
    (a, u), (b, v) = results
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
    np.testing.assert_allclose(u, v, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(u, axis=1), 1.0, atol=1e-5)


def test_continuous_batching_is_the_same_on_any_mesh():
    """Sixteen prompts through eight rows; keys and values split over all three axes."""
    cfg = small(gemma3.tiny_gemma3, layers=2)
    shapes, draws = Shapes(B, P + 4, 1, C), Sampling(1.0, 0, 1.0, tuple(range(12)), 0)
    results = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh = mesh_of(shape)
        params = make_init(cfg, mesh, "float32")(np.uint32(3))
        params = sampling.make_relayout(cfg, mesh, FLOAT32)(params)
        refill = sampling.make_refill(cfg, mesh, shapes, Shapes(B, P), "float32")
        advance = sampling.make_advance(cfg, mesh, shapes, draws, "float32")
        slots = sampling.make_new_slots(cfg, mesh, shapes, "float32")()
        seeds, found = np.array([0, 1, 2], np.uint32), []
        rows = np.arange(B, dtype=np.int32)
        for seed in (0, 1):
            batch = batch_on(mesh, seed)
            ids = put(np.arange(B, dtype=np.int32) + 10 * seed, by_batch(mesh))
            new = (batch.prompt, batch.prompt_mask, ids, put(rows, by_batch(mesh)))
            old, slots = slots, refill(params, slots, *new)
            assert old.state[2][0].k.is_deleted()  # its memory was reused
            # half of the rows, then the other half: the second refill finds both ended
            for free in (B // 2, B):
                slots, steps = advance(params, slots, np.int32(free), seeds)
                found.append(to_host((slots.tokens, slots.length, slots.done, steps)))
                assert found[-1][2].sum() >= free
        kv = slots.state[1][0].k
        assert kv.addressable_shards[0].data.size * mesh.size == kv.size
        results.append(found)
    jax.tree.map(np.testing.assert_array_equal, *results)
    lengths = results[0][-1][1]
    assert len(set(lengths.tolist())) > 2


def test_encoder_update_is_one_batch_on_any_mesh_and_however_packed():
    """Against each text by itself in plain sight, on one device."""
    cfg = small(qwen3.tiny_qwen3)
    of_item = np.array([0, 1, 2, 3, 0, 5, 6, 7], np.int32)
    sides = [to_host(batch_on(mesh_of((1, 1, 1)), seed)) for seed in (0, 5)]
    schedule = make_schedule(1e-3, kind="constant", warmup_steps=0, num_steps=5)
    optimizer = make_optimizer(schedule, b1=0.9, b2=0.95, eps=1e-8, grad_clip=1.0)

    def plain(params):
        users, items = (
            encoder.embed(params, cfg, *map(jnp.asarray, (x.prompt, x.prompt_mask)))
            for x in sides
        )
        return losses.supervised_contrastive(
            users, items, jnp.asarray(of_item), similarity_temperature=0.07
        )

    @jax.jit
    def step(state):
        value, grads = jax.value_and_grad(plain)(state.params)
        return value, *apply_gradients(state, grads, value, optimizer)

    queries, items = [
        [row[mask].tolist() for row, mask in zip(x.prompt, x.prompt_mask, strict=True)]
        for x in sides
    ]
    counts = row_counts(B, 2 * P, P, shards=8)
    rows, places = train_encoder.pack_pairs(
        queries, items, length=2 * P, counts=counts, pad_id=0
    )
    assert len(rows.tokens) < 2 * B  # else nothing was packed
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    for shape in ((1, 1, 1), (2, 4, 1)):
        mesh = mesh_of(shape)
        params = make_init(cfg, mesh, "float32")(np.uint32(3))
        shapes = abstract_params(cfg, mesh, "float32")
        state = optimizers.make_init_state(shapes, optimizer, mesh)(params)
        value, expected, norm = step(to_host(state))
        sizes = RowShapes(len(rows.tokens), 2 * P, rows.ends.shape[1])
        update = make_encoder_update(
            cfg, mesh, optimizer, schedule, sizes, FLOAT32, pairs=B,
            similarity_temperature=0.07,
        )  # fmt: skip
        batch = put((*rows[:5], places, of_item), by_batch(mesh))
        found, info = to_host(update(state, {}, *batch))
        jax.tree.map(close, found.params, expected.params)
        close(info["policy/loss"], value)
        close(info["optim/grad_norm"], norm)


def test_any_batch_of_pairs_fits_the_last_of_its_programs():
    length, most, rng = 32, 12, np.random.default_rng(0)
    for seed in range(20):
        draw = lambda least, most: rng.integers(4, 99, rng.integers(least, most + 1))
        queries = [draw(seed + 1, length).tolist() for _ in range(9)]
        items = [draw(most if seed % 2 else 1, most).tolist() for _ in range(9)]
        counts = row_counts(9, length, most, shards=2)
        rows, places = train_encoder.pack_pairs(
            queries, items, length=length, counts=counts, pad_id=0
        )
        ends = rows.ends.reshape(-1)[places]
        row = places // rows.ends.shape[1]
        last = [text[-1] for text in (*queries, *items)]
        assert rows.tokens[row, ends].tolist() == last


def test_non_finite_advantage_leaves_every_bit():
    mesh = mesh_of((1, 1, 1))
    cfg = small(qwen3.tiny_qwen3)
    _, state, update = make_run(cfg, mesh)
    before = to_host(state)
    batch = batch_on(mesh)
    bad = np.asarray(batch.advantages).copy()
    bad[0, 0] = np.nan
    state, info = update(state, {}, batch._replace(advantages=put(bad, by_batch(mesh))))
    after = to_host(state)
    same = lambda a, b: np.testing.assert_array_equal(a, b)
    jax.tree.map(same, after.params, before.params)
    jax.tree.map(same, after.opt_state, before.opt_state)
    assert (after.step, after.skipped, info["skipped_in_row"]) == (1, 1, 1)


def test_the_start_survives_the_donated_state():
    mesh = mesh_of((1, 1, 1))
    params, state, update = make_run(small(qwen3.tiny_qwen3), mesh)
    start = to_host(params)
    leaf = state.params["embed"]
    state, _ = update(state, {}, batch_on(mesh))
    assert leaf.is_deleted()  # its memory was reused
    jax.tree.map(np.testing.assert_array_equal, to_host(params), start)


def test_programs_do_not_compile_again():
    mesh = mesh_of((1, 1, 1))
    _, state, update = make_run(small(qwen3.tiny_qwen3), mesh)
    programs.wait()
    state, _ = update(state, {}, batch_on(mesh))
    before = programs.compiles["count"]
    for seed in range(3):
        state, _ = update(state, {}, batch_on(mesh, seed))
    assert programs.compiles["count"] == before
    assert before > 0 and jnp.isfinite(state.params["embed"]).all()
