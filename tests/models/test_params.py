"""Parameters on a mesh are those of the plain functions, split over the devices."""

import dataclasses

import jax
import numpy as np
import pytest

from blue.models import decoder, gemma3, lora
from blue.models.decoder import Lora
from blue.models.params import (
    abstract_params,
    make_adapters,
    make_init,
    make_merge,
    shapes_of,
)
from blue.runtime.sharding import make_mesh, put, to_host

CFG = dataclasses.replace(
    gemma3.tiny_gemma3(), vocab_size=64, width=16, mlp_width=32, num_heads=2,
    num_kv_heads=1, head_size=8, num_layers=1, pattern=("global",),
    lora=Lora(rank=2, alpha=4.0, targets=("q", "down")),
)  # fmt: skip
PLAIN = lora.without(CFG)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(1, 4, 2)


@pytest.fixture(scope="module")
def params(mesh):
    return make_init(PLAIN, mesh, "float32")(np.uint32(3))


def test_random_parameters_do_not_depend_on_the_mesh(mesh, params):
    want = jax.jit(lambda: decoder.init_params(PLAIN, jax.random.key(3)))()
    jax.tree.map(np.testing.assert_array_equal, to_host(params), to_host(want))


def test_they_are_born_on_their_shards(mesh, params):
    shapes = abstract_params(PLAIN, mesh, "float32")
    found = shapes_of(params)
    assert jax.tree.structure(found) == jax.tree.structure(shapes)
    same = lambda a, b: (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)
    assert all(jax.tree.leaves(jax.tree.map(same, found, shapes)))
    gate = params["layers"]["gate"]  # [layers, width, mlp_width]
    assert gate.addressable_shards[0].data.size == gate.size // 8


def test_dtypes_are_those_that_are_asked_for(mesh):
    shapes = abstract_params(CFG, mesh, "bfloat16")
    frozen, trained = lora.split(shapes)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(frozen)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trained)} == {"float32"}


def test_adapters_are_made_alone_and_merged(mesh, params):
    adapters = make_adapters(CFG, mesh, "float32")(np.uint32(5))
    names = {f"{name}_{end}" for name in ("q", "down") for end in "ab"}
    assert adapters.keys() == {"layers"} and adapters["layers"].keys() == names
    layers = dict(adapters["layers"])
    assert np.std(layers["q_a"]) > 0.01 and not np.any(layers["q_b"])
    rng = np.random.default_rng(0)
    for name in ("q_b", "down_b"):  # as after training
        leaf = layers[name]
        value = rng.normal(size=leaf.shape).astype(np.float32)
        layers[name] = put(value, leaf.sharding)
    joined = lora.join(params, {"layers": layers})
    merged = make_merge(CFG, abstract_params(CFG, mesh, "float32"))(joined)
    want = lora.merge(to_host(joined), CFG)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, to_host(merged), to_host(want))
    assert np.any(merged["layers"]["q"] != params["layers"]["q"])
    assert merged["layers"]["q"].sharding == params["layers"]["q"].sharding
