"""Real compiled text: this machine's, and excerpts of our programs for v6e:2x4."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

EXCERPTS = Path(__file__).parents[2] / "fixtures/hlo"


@pytest.fixture(scope="session")
def tpu():
    """name -> the text of the TPU compiler."""
    return lambda name: (EXCERPTS / f"tpu_{name}.txt").read_text()


@pytest.fixture(scope="session")
def cpu_text():
    """Five kinds outside a loop; a scan over 6 sharded matrices, gathered one by one"""
    mesh = Mesh(jax.devices(), ("x",))

    def kinds(a):  # a device's own: [8, 16] float32, 512 bytes
        return (
            jax.lax.psum(a, "x"),
            jax.lax.all_gather(a, "x", tiled=True),
            jax.lax.psum_scatter(a, "x", tiled=True),
            jax.lax.all_to_all(a, "x", 1, 0, tiled=True),
            jax.lax.ppermute(a, "x", [(i, (i + 1) % 8) for i in range(8)]),
        )

    specs = (P(), P(), P("x"), P("x"), P("x"))
    shard = {"mesh": mesh, "check_vma": False}
    kinds = jax.shard_map(kinds, in_specs=P("x"), out_specs=specs, **shard)

    def gathered(x, w):  # [16, 2] a device
        return x @ jax.lax.all_gather(w, "x", axis=1, tiled=True), None

    layers = lambda x, ws: jax.lax.scan(gathered, x, ws)[0]
    spec = P(None, None, "x")
    layers = jax.shard_map(layers, in_specs=(P("x"), spec), out_specs=P("x"), **shard)

    def program(a, ws):
        return kinds(a), layers(a, ws)

    at = lambda shape, spec: jax.ShapeDtypeStruct(
        shape, jnp.float32, sharding=NamedSharding(mesh, spec)
    )
    args = at((64, 16), P("x")), at((6, 16, 16), spec)
    return jax.jit(program).lower(*args).compile().as_text()
