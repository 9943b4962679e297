"""A model's parameters: abstract, random, with adapters, merged."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from blue.models import decoder, lora
from blue.models.decoder import DecoderConfig, Params
from blue.runtime.programs import Program, compile_program, shardings_of
from blue.runtime.sharding import abstract, param_shardings, replicated


def shapes_of(params: Params) -> Params:
    """The same tree of abstract arrays, to restore checkpoints into."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )


@functools.cache
def abstract_params(cfg: DecoderConfig, mesh: Mesh, dtype: str) -> Params:
    """Shapes and training shardings of a model's parameters."""
    init = lambda key: decoder.init_params(cfg, key, dtype)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return abstract(shapes, param_shardings(shapes, mesh))


@functools.cache
def make_init(cfg: DecoderConfig, mesh: Mesh, dtype: str) -> Program:
    """(key data) -> random parameters, created sharded."""
    shapes = abstract_params(cfg, mesh, dtype)
    init = lambda seed: decoder.init_params(cfg, jax.random.key(seed), dtype)
    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=replicated(mesh))
    return compile_program(init, (seed,), out_shardings=shardings_of(shapes))


@functools.cache
def make_adapters(cfg: DecoderConfig, mesh: Mesh, dtype: str) -> Program:
    """(key data) -> fresh adapters for the plain model, created sharded."""
    shapes = lora.split(abstract_params(cfg, mesh, dtype))[1]

    def init(seed: Array) -> Params:  # XLA removes what is not returned
        return lora.split(decoder.init_params(cfg, jax.random.key(seed), dtype))[1]

    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=replicated(mesh))
    return compile_program(init, (seed,), out_shardings=shardings_of(shapes))


def make_merge(cfg: DecoderConfig, params: Params) -> Program:
    """(params with adapters) -> the plain model's; `params` are abstract, sharded."""
    out = shardings_of(lora.split(params)[0])
    return compile_program(lambda p: lora.merge(p, cfg), (params,), out_shardings=out)
