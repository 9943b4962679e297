"""The policy update: any mesh, micro-batches, bad batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blue.models import decoder, gemma3, qwen3
from blue.models.params import abstract_params, make_init
from blue.runtime import programs
from blue.runtime.sharding import by_batch, put, replicated, to_host
from blue.training import optimizers
from blue.training.optimizers import make_optimizer, make_schedule
from blue.training.policy import Objective, make_update
from tests.helpers.updates import FLOAT32, SHAPES, B, C, G, P, batch_on, mesh_of, small

MESHES = [
    (gemma3.tiny_gemma3, (2, 2, 2)),
    pytest.param(gemma3.tiny_gemma3, (1, 8, 1), marks=pytest.mark.slow),
    pytest.param(gemma3.tiny_gemma3, (1, 2, 4), marks=pytest.mark.slow),
    pytest.param(qwen3.tiny_qwen3, (1, 8, 1), marks=pytest.mark.slow),
]


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


@pytest.fixture(scope="module")
def one_device():
    """{family: what a step gives}, made when it is asked for."""

    @functools.cache
    def step_of(family):
        mesh = mesh_of((1, 1, 1))
        _, state, update = make_run(small(family), mesh)
        return to_host(update(state, {}, batch_on(mesh)))

    return step_of


@pytest.mark.parametrize("family, shape", MESHES)
def test_one_step_is_the_same_on_any_mesh(family, shape, one_device):
    mesh = mesh_of(shape)
    _, state, update = make_run(small(family), mesh)
    if mesh.shape["fsdp"] > 1:  # parameters really are split
        q = state.params["layers"]["q"]
        assert q.addressable_shards[0].data.size < q.size
    new, info = to_host(update(state, {}, batch_on(mesh)))
    want, want_info = one_device(family)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    jax.tree.map(close, new.params, want.params)
    jax.tree.map(close, new.opt_state, want.opt_state)  # the gradients, exactly
    jax.tree.map(close, info, want_info)
    assert info["optim/grad_norm"] > 1e-3


def test_what_a_step_reports_is_the_mean_over_taught_tokens(one_device):
    """From the logits of every row by itself, in NumPy."""
    mesh, cfg = mesh_of((1, 1, 1)), small(gemma3.tiny_gemma3)
    params = programs_of(cfg, mesh, 0)[0]
    batch = to_host(batch_on(mesh))
    logits_of = jax.jit(
        lambda ids, mask: (
            decoder.forward(params, cfg, ids, mask) @ decoder.head(params).T
        )
    )
    found = {"kl": [], "entropy": [], "gap": []}
    for b, g in np.ndindex(B, G):
        if not batch.teaching[b, g]:
            continue
        ids = np.append(batch.prompt[b], batch.tokens[b, g])
        seen = np.append(batch.prompt_mask[b], batch.mask[b, g])
        logits = np.asarray(logits_of(ids[None], seen[None])[0], np.float64)
        p = np.exp(logits[P - 1 : -1] - logits[P - 1 : -1].max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        own = np.log(p[np.arange(C), batch.tokens[b, g]])
        d = batch.ref_logprobs[b, g] - own
        there = batch.mask[b, g]
        found["kl"] += list((np.exp(d) - d - 1)[there])
        found["entropy"] += list(-(p * np.log(p)).sum(1)[there])
        found["gap"] += list(np.abs(batch.sampler_logprobs[b, g] - own)[there])
    _, info = one_device(gemma3.tiny_gemma3)
    want = {
        "policy/kl": np.mean(found["kl"]),
        "policy/entropy": np.mean(found["entropy"]),
        "policy/clip_fraction": 0,  # one update a batch: every ratio is 1
        "policy/sampler_gap_mean": np.mean(found["gap"]),
        "policy/sampler_gap_max": np.max(found["gap"]),
    }
    for name, value in want.items():
        np.testing.assert_allclose(info[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("micro", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_micro_batches_add_up(micro, one_device):
    mesh = mesh_of((1, 1, 1))
    _, state, update = make_run(small(gemma3.tiny_gemma3), mesh, micro=micro)
    new, info = to_host(update(state, {}, batch_on(mesh)))
    want, want_info = one_device(gemma3.tiny_gemma3)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    jax.tree.map(close, new.params, want.params)
    jax.tree.map(close, info, want_info)


def test_degenerate_batches_give_finite_updates():
    """Whatever takes no part is as if it were not there; nothing becomes NaN."""
    mesh, cfg = mesh_of((1, 1, 1)), small(gemma3.tiny_gemma3)
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


def test_non_finite_advantage_leaves_every_bit():
    mesh = mesh_of((1, 1, 1))
    cfg = small(gemma3.tiny_gemma3)
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
    params, state, update = make_run(small(gemma3.tiny_gemma3), mesh)
    start = to_host(params)
    leaf = state.params["embed"]
    state, _ = update(state, {}, batch_on(mesh))
    assert leaf.is_deleted()  # its memory was reused
    jax.tree.map(np.testing.assert_array_equal, to_host(params), start)


def test_programs_do_not_compile_again():
    mesh = mesh_of((1, 1, 1))
    _, state, update = make_run(small(gemma3.tiny_gemma3), mesh)
    programs.wait()
    state, _ = update(state, {}, batch_on(mesh))
    before = programs.compiles["count"]
    for seed in range(3):
        state, _ = update(state, {}, batch_on(mesh, seed))
    assert programs.compiles["count"] == before
    assert before > 0 and jnp.isfinite(state.params["embed"]).all()
