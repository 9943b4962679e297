"""LoRA: worked numbers, the chain rule, sharding, and whole stages that train it."""

import dataclasses
import functools
import gc
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from blue.errors import UserError
from blue.inference import sampling
from blue.models import decoder, decoding, gemma3, lora
from blue.models.decoder import GLOBAL, LOCAL, Lora
from blue.models.params import abstract_params
from blue.runtime import programs
from blue.runtime.shapes import Precision, Shapes
from blue.runtime.sharding import make_mesh, put, to_host
from blue.sources.data import load_examples, load_log
from blue.sources.encoder import load_encoder
from blue.sources.open_run import Run
from blue.sources.profiler import load_profiler, load_profiler_base
from blue.sources.role import add_adapters, stage_checkpoints
from blue.stages import train_encoder, train_profiler, warm_start
from blue.training import optimizers, session
from blue.training import policy as policy_module
from blue.workdir import writer
from configs import quickstart
from tests.helpers.small_adapters import (
    EVERY,
    QWEN,
    SMALL,
    B,
    C,
    G,
    P,
    fresh_params,
    grpo_batch,
    jit,
    make_optimizer_at,
    mesh_of,
)

GEMMA = dataclasses.replace(
    gemma3.tiny_gemma3(), **SMALL, num_layers=2, pattern=(LOCAL, GLOBAL), lora=EVERY
)
FAMILIES = pytest.mark.parametrize(
    "cfg",
    [GEMMA, pytest.param(QWEN, marks=pytest.mark.slow)],  # adapters beside some alone
    ids=["gemma3", "qwen3"],
)
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 64, (3, 9)), jnp.int32)
MASK = jnp.arange(9)[None] >= jnp.array([0, 3, 5])[:, None]


def trained_params(cfg):
    """Parameters whose B is not zero, as after training."""
    frozen, trained = lora.split(fresh_params(cfg))
    rng = np.random.default_rng(0)
    noise = lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype)
    return lora.join(frozen, jax.tree.map(noise, trained))


@functools.cache
def forward_of(cfg):
    return jit(lambda params: decoder.forward(params, cfg, TOKENS, MASK))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def leaf_names(tree):
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in paths]


# --- the equation


def test_a_projection_by_hand():
    """A block whose attention is silent, so that x + down(h) , h = [1, 1], is left."""
    cfg = dataclasses.replace(
        QWEN, width=2, mlp_width=2, num_heads=1, num_kv_heads=1, head_size=2,
        lora=Lora(rank=1, alpha=3.0, targets=("down",)),
    )  # fmt: skip
    x, at = jnp.ones((1, 1, 2)), jnp.zeros((1, 1), jnp.int32)
    nothing = lambda q, kv: (jnp.zeros_like(q), None)
    block = decoder.Block(cfg, GLOBAL)
    params = block.init(jax.random.key(0), x, at, nothing)["params"]
    silu_of_one = 0.7310586
    params |= {
        "gate": jnp.array([[1.0, 0.0], [0.0, 1.0]]),  # the norm of x is x
        "up": jnp.eye(2) / silu_of_one,
        "down": jnp.array([[1.0, 2.0], [3.0, 4.0]]),
        "down_a": jnp.array([[1.0], [2.0]]),
        "down_b": jnp.array([[10.0, 20.0]]),
    }
    out, _ = block.apply({"params": params}, x, at, nothing)
    # x + h W + 3 / 1 (h A) B = [1, 1] + [4, 6] + 3 * 3 * [10, 20]
    np.testing.assert_allclose(out[0, 0], [95.0, 187.0], rtol=1e-5)


def test_merging_by_hand():
    cfg = dataclasses.replace(QWEN, lora=Lora(rank=1, alpha=3.0, targets=("down",)))
    layers = {
        "down": jnp.array([[[1.0, 2.0], [3.0, 4.0]]], jnp.bfloat16),
        "down_a": jnp.array([[[1.0], [2.0]]]),
        "down_b": jnp.array([[[10.0, 20.0]]]),
        "up": jnp.ones((1, 2, 2)),
    }
    merged = lora.merge({"embed": jnp.ones(3), "layers": layers}, cfg)
    assert merged["layers"].keys() == {"down", "up"}
    assert merged["layers"]["down"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(merged["layers"]["down"], [[[31, 62], [63, 124]]])


@FAMILIES
def test_fresh_adapters_change_nothing(cfg):
    params = fresh_params(cfg)
    plain, _ = lora.split(params)
    want = forward_of(lora.without(cfg))(plain)
    same(forward_of(cfg)(params), want)
    same(lora.merge(params, cfg), plain)


@FAMILIES
def test_merged_computes_what_unmerged_does(cfg):
    params, plain = trained_params(cfg), lora.without(cfg)
    merged = lora.merge(params, cfg)
    want = forward_of(cfg)(params)
    got = forward_of(plain)(merged)
    np.testing.assert_allclose(got, want, atol=2e-5)
    without = forward_of(plain)(lora.split(params)[0])
    assert np.abs(without - want).max() > 0.1
    shapes = jax.eval_shape(lambda: decoder.init_params(plain, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, shapes)


@FAMILIES
def test_the_gradient_is_the_full_one_seen_through_the_adapters(cfg):
    """W' = W + s A B, so dA = s dW' B^T and dB = s A^T dW', layer by layer."""
    params = trained_params(cfg)
    frozen, trained = lora.split(params)
    weights = jax.random.normal(jax.random.key(2), (3, 9, cfg.width))

    def loss(params, cfg):
        return jnp.sum(decoder.forward(params, cfg, TOKENS, MASK) * weights)

    adapted = jit(jax.grad(lambda t: loss(lora.join(frozen, t), cfg)))
    whole = jit(jax.grad(lambda p: loss(p, lora.without(cfg))))
    grads = adapted(trained)["layers"]
    full = jax.device_get(whole(lora.merge(params, cfg)))["layers"]
    grads, trained = jax.device_get((grads, trained))
    assert grads.keys() == {f"{name}_{x}" for name in cfg.lora.targets for x in "ab"}
    for name in cfg.lora.targets:
        inputs = 2 if name == "o" else 1
        for n in range(cfg.num_layers):
            a, b = (trained["layers"][f"{name}_{x}"][n] for x in "ab")
            dW = full[name][n].reshape(np.prod(a.shape[:inputs]), -1)
            A, Bt = a.reshape(len(dW), -1), b.reshape(len(b), -1).T
            dA, dB = (grads[f"{name}_{x}"][n] for x in "ab")
            scale = cfg.lora.scale()
            close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)
            close(dA.reshape(A.shape), scale * dW @ Bt)
            close(dB.reshape(len(b), -1), scale * A.T @ dW)
            assert np.abs(dA).max() > 0.01 < np.abs(dB).max()


@FAMILIES
def test_split_and_join(cfg):
    params = fresh_params(cfg)
    frozen, trained = lora.split(params)
    same(lora.join(frozen, trained), params)
    assert len(leaf_names(trained)) == 2 * len(cfg.lora.targets)
    assert not [n for n in leaf_names(frozen) if n.endswith(("_a", "_b"))]
    assert lora.split(frozen)[0] == {} and lora.split(frozen)[1] is frozen
    same(lora.join({}, frozen), frozen)  # full fine-tuning: nothing is frozen


def test_adapters_stay_float32_beside_smaller_matrices():
    params = jax.eval_shape(
        lambda: decoder.init_params(QWEN, jax.random.key(0), "bfloat16")
    )
    frozen, trained = lora.split(params)
    assert {x.dtype.name for x in jax.tree.leaves(frozen)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(trained)} == {"float32"}
    merged = jax.eval_shape(lambda p: lora.merge(p, QWEN), params)
    assert {x.dtype.name for x in jax.tree.leaves(merged)} == {"bfloat16"}


def make_update(cfg, mesh, remat=""):
    schedule, optimizer = make_optimizer_at(1e-3)
    update = policy_module.make_update(
        cfg, mesh, optimizer, schedule, Shapes(B, P, G, C),
        Precision("float32", "float32", remat),
        policy_module.Objective(temperature=1.0, clip_eps=0.2, kl_coef=0.05),
    )  # fmt: skip
    return optimizer, update


def test_a_step_is_the_same_on_any_mesh_and_touches_adapters_alone():
    results, cfg = [], dataclasses.replace(GEMMA, num_layers=1)
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh = mesh_of(*shape)
        shapes = abstract_params(cfg, mesh, "float32")
        params = put(trained_params(cfg), jax.tree.map(lambda x: x.sharding, shapes))
        frozen, trained = lora.split(params)
        before = to_host(frozen)
        optimizer, update = make_update(cfg, mesh, remat="layers")
        init = optimizers.make_init_state(lora.split(shapes)[1], optimizer, mesh)
        state, info = update(init(trained), frozen, grpo_batch(mesh))
        if mesh.size > 1:  # A along its inputs, B along its outputs
            part = lambda x: x.addressable_shards[0].data.shape
            layers = state.params["layers"]
            assert part(layers["gate_a"]) == (1, 16, 4)
            assert part(layers["gate_b"]) == (1, 4, 24)
            assert part(layers["o_a"]) == (1, 2, 8, 4)
        same(to_host(frozen), before)  # and neither donated nor moved
        names = leaf_names(state)
        weights = [n for n in names if "layers/" in n]
        assert len(weights) == 3 * 2 * len(EVERY.targets)  # params, two moments
        assert not [n for n in names if "embed" in n or "norm" in n]
        results.append(to_host((state, info)))
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)
    (one, info), (many, many_info) = results
    jax.tree.map(close, many.params, one.params)
    jax.tree.map(close, many.opt_state, one.opt_state)
    jax.tree.map(close, many_info, info)
    assert info["optim/grad_norm"] > 1e-3


def test_the_sampler_gets_the_merged_model():
    mesh, params = mesh_of(1, 2, 2), trained_params(GEMMA)
    kinds = Precision("float32", "bfloat16")
    shapes = abstract_params(GEMMA, mesh, "float32")
    params = put(params, jax.tree.map(lambda x: x.sharding, shapes))
    got = sampling.make_relayout(GEMMA, mesh, kinds)(params)
    want = decoding.unstack_layers(lora.merge(to_host(params), GEMMA))
    near = lambda a, b: np.testing.assert_allclose(
        np.asarray(a, np.float32), np.asarray(b), rtol=2**-8, atol=1e-6
    )
    jax.tree.map(near, to_host(got), want)


# --- what it saves, counted


def test_the_training_state_is_small(capsys):
    """Gemma 3 1B, rank 16 beside all matrices: from shapes alone."""
    mesh, (_, optimizer) = make_mesh(1, -1, 1), make_optimizer_at(1e-3)
    size = {}
    for rank in (0, 16):
        fields = Lora(rank, 32.0, lora.TARGETS) if rank else None
        cfg = dataclasses.replace(gemma3.gemma3_1b(), lora=fields)
        _, trained = lora.split(abstract_params(cfg, mesh, "float32"))
        state = optimizers.abstract_state(trained, optimizer, mesh)
        leaves = jax.tree.leaves(state)
        size[rank] = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    assert size[0] == 12 * 999_885_952 + 20  # weights, two moments, five counters
    assert size[16] == 12 * 13_045_760 + 20
    assert size[16] < 0.014 * size[0]


def test_an_update_costs_less():
    """Counted by XLA: no gradient of the frozen matrices is computed."""
    wide = dataclasses.replace(GEMMA, num_layers=1, width=64, mlp_width=256)
    with programs.descriptions_only():
        _, adapted = make_update(wide, mesh_of(1, 1, 1))
        _, full = make_update(lora.without(wide), mesh_of(1, 1, 1))
    flops = lambda p: p.trace().lower().cost_analysis()["flops"]
    adapted, full = flops(adapted), flops(full)
    assert adapted < 0.8 * full, (adapted, full)


# --- whole stages

STEPS, EMBED = 2, "model.embed_tokens.weight"


def make_config(**fields):
    c = quickstart.get_config("tiny")  # with warm_start.tie_to_encoder
    c.num_steps = c.train_encoder.num_steps = c.warm_start.num_steps = STEPS
    c.warm_start.tasks = ("profile",)
    c.checkpoint_every, c.eval_every, c.log.sample_users = 1, STEPS, 0
    c.lr_warmup_steps = c.warm_start.lr_warmup_steps = 0
    c.train_encoder.lr_warmup_steps = 0
    c.judge.model = "policy"
    c.profiler.lora.rank, c.encoder.lora.rank = 4, 2
    c.encoder.lora.targets = ("q", "v")
    c.update_from_flattened_dict(fields)
    return c


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A workdir in which three stages trained adapters without a break."""
    workdir = tmp_path_factory.mktemp("lora")
    for module in (train_encoder, warm_start, train_profiler):
        module.run(make_config(), str(workdir))
    return workdir


def kept(workdir, stage):
    """Leaves of the last checkpoint of a stage, by name."""
    from orbax.checkpoint import v1 as ocp

    saved = workdir / "checkpoints" / stage / str(STEPS)
    state = ocp.load_checkpointables(saved, {"state": None})["state"]
    return dict(zip(leaf_names(state), jax.tree.leaves(state), strict=True))


def kept_embed(workdir):
    return load_file(workdir / "export/profiler/model.safetensors")[EMBED]


@pytest.mark.slow
def test_checkpoints_hold_adapters_alone(whole):
    for stage, matrices in (("encoder", 2), ("warm_start", 7), ("profiler", 7)):
        saved = kept(whole, stage)
        weights = [name for name in saved if "layers/" in name]
        assert all(name.endswith(("_a", "_b")) for name in weights)
        assert len(weights) == 3 * 2 * matrices  # and their two moments
        assert len(saved) == len(weights) + 5  # the counters
        assert all(np.any(saved[name]) for name in weights)  # B, too, has moved


@pytest.mark.slow
def test_resume_is_bitwise_with_one_copy_of_the_profiler(whole, tmp_path, monkeypatch):
    """The last step and what comes after it, done once more."""
    shape = kept_embed(whole).shape
    found, progress = [], writer.Writer.progress

    def count():
        gc.collect()
        return sum(x.shape == shape for x in jax.live_arrays())

    def look(self, step, values):
        found.append(count() - before)
        progress(self, step, values)

    monkeypatch.setattr(writer.Writer, "progress", look)
    before = count()
    shutil.copytree(whole, tmp_path / "again")
    done = tmp_path / "again" / "checkpoints" / "profiler"
    shutil.rmtree(done / "best")
    shutil.rmtree(done / str(STEPS))
    (done / "finished.json").unlink()
    train_profiler.run(make_config(), str(tmp_path / "again"))
    keep = lambda row: {k: v for k, v in row.items() if k[:5] not in ("time/", "speed")}
    assert found == [2]  # profiler and encoder; the reference is the profiler's own
    again, first = rows_of(tmp_path / "again", "profiler"), rows_of(whole, "profiler")
    assert [keep(row) for row in again] == [keep(row) for row in first]
    same(kept(tmp_path / "again", "profiler"), kept(whole, "profiler"))
    for name in ("profiler", "profiler_adapter"):
        a, b = (sorted((w / "export" / name).glob("*.safetensors"))
                for w in (tmp_path / "again", whole))  # fmt: skip
        assert [x.read_bytes() for x in a] == [x.read_bytes() for x in b] != []


@pytest.mark.slow
@pytest.mark.parametrize(
    "field, value, told",
    [
        ("rank", 2, r"layers/down_a: expected .*, 2\], found .*, 4\]; .*lora"),
        ("rank", 0, "expected float32.*, found nothing; .*lora"),
        ("targets", ("q", "k"), "expected nothing, found .*lora"),
        ("alpha", 8.0, "profiler: adapters with alpha 32.0, and the config gives 8.0"),
    ],
)
def test_other_adapters_in_the_same_workdir_are_one_line(whole, field, value, told):
    c, mesh = make_config(**{f"profiler.lora.{field}": value}), make_mesh(1, -1, 1)
    log = load_log(c, str(whole))
    base = load_profiler_base(Run(c, str(whole), mesh, log), stage="profiler")
    policy = add_adapters(c, "profiler", base, mesh, stage="profiler")
    checkpoints = stage_checkpoints(c, str(whole), "profiler")
    _, optimizer = session.optimizer_of(c, c, b2=c.adam_b2)
    data = load_examples(c, log, str(whole)).fingerprint
    note = session.checkpoint_note(c, policy, data=data, stage="profiler")
    with pytest.raises(UserError, match=told) as error:
        session.start(checkpoints, optimizer, policy, mesh, note, "auto")
    assert "\n" not in str(error.value) and "--workdir" in str(error.value)


def rows_of(workdir, stage):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["stage"] == stage]


@pytest.mark.slow
def test_the_reference_is_where_the_stage_started(whole):
    rows = rows_of(whole, "profiler")
    assert abs(rows[0]["policy/kl"]) < 1e-6 < rows[-1]["policy/kl"]
    assert max(row["policy/sampler_gap_max"] for row in rows) < 1e-4
    assert len({row["speed/compiles"] for row in rows}) == 1


@pytest.mark.slow
def test_each_stage_starts_from_the_merged_one_before(whole):
    """And what is exported, what is loaded and what is merged are the same numbers."""
    c, mesh = make_config(), make_mesh(1, -1, 1)
    log = load_log(c, str(whole))
    load = lambda stage: load_profiler_base(Run(c, str(whole), mesh, log), stage=stage)
    start, base = load("warm_start"), load("profiler")
    trained = load_profiler(Run(c, str(whole), mesh, log), "trained")
    assert base.name.endswith("after warm_start") and base.cfg.lora is None
    embeds = [to_host(m.params["embed"]) for m in (start, base, trained)]
    same(embeds[0], embeds[1])
    same(embeds[0], embeds[2])
    for a, b in ((start, base), (base, trained)):
        assert np.abs(to_host(a.params["layers"]["o"] - b.params["layers"]["o"])).max()

    config = make_config(**{"profiler.checkpoint": str(whole / "export/profiler")})
    loaded = load_profiler(Run(config, str(whole), mesh, log), "base")
    assert loaded.cfg == trained.cfg
    same(to_host(loaded.params), to_host(trained.params))
    encoder = load_encoder(Run(c, str(whole), mesh, log))
    config = make_config(**{"encoder.checkpoint": str(whole / "export/encoder")})
    again = load_encoder(Run(config, str(whole), mesh, log))
    same(to_host(again.params), to_host(encoder.params))

    # the files for PEFT say the same: W of the export = W of the base + 32 / 4 B A
    folder = whole / "export/profiler_adapter"
    said = json.loads((folder / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["task_type"]) == (4, 32, "CAUSAL_LM")
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * base.cfg.num_layers
    name = "base_model.model.model.layers.2.self_attn.o_proj.lora_{}.weight"
    change = 8 * tensors[name.format("B")] @ tensors[name.format("A")]
    matrix = lambda m: to_host(m.params["layers"]["o"][2]).reshape(-1, base.cfg.width)
    np.testing.assert_allclose(matrix(trained), matrix(base) + change.T, atol=1e-6)
    names = load_file(whole / "export/encoder_adapter/adapter_model.safetensors")
    assert "base_model.model.layers.1.self_attn.v_proj.lora_A.weight" in names


@pytest.mark.slow
def test_adapters_know_their_base(whole):
    """Another seed makes another base: merging into it would give nonsense."""
    c, mesh = make_config(), make_mesh(1, -1, 1)
    log = load_log(c, str(whole))
    c.seed += 1
    with pytest.raises(UserError, match="adapters were trained on another model"):
        load_profiler(Run(c, str(whole), mesh, log), "base")
