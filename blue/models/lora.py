"""LoRA: small matrices A and B are trained beside the frozen ones of a decoder.

https://arxiv.org/abs/2106.09685. Where `DecoderConfig.lora` names a matrix W, the
layers also hold A, `W_a` [inputs, r], and B, `W_b` [r, outputs]. They compute x W +
alpha / r (x A) B. B starts as zeros, so the start is exactly the frozen model. So a
policy in training contains its reference: `split` the parameters.
"""

import dataclasses

import jax
import jax.numpy as jnp

from blue.models.decoder import DecoderConfig, Params
from blue.models.tensor_names import MATRICES

TARGETS = MATRICES  # that may have adapters
ADAPTERS = {f"{name}_{end}" for name in TARGETS for end in "ab"}


def without(cfg: DecoderConfig) -> DecoderConfig:
    """The configuration of the plain model."""
    return dataclasses.replace(cfg, lora=None)


def split(params: Params) -> tuple[Params, Params]:
    """(frozen, trained): the plain model, not copied, and its adapters.

    A model without adapters is trained completely: nothing is frozen.
    """
    layers = params["layers"]
    trained = {name: leaf for name, leaf in layers.items() if name in ADAPTERS}
    if not trained:
        return {}, params
    plain = {name: leaf for name, leaf in layers.items() if name not in ADAPTERS}
    return {**params, "layers": plain}, {"layers": trained}


def join(frozen: Params, trained: Params) -> Params:
    """All parameters, out of the two parts of `split`."""
    layers = {**frozen.get("layers", {}), **trained["layers"]}
    return {**frozen, **trained, "layers": layers}


def merge(params: Params, cfg: DecoderConfig) -> Params:
    """Parameters of the equivalent plain model: W + alpha / r A B.

    Summed in float32 and rounded once, to the dtype of W.
    """
    if cfg.lora is None:
        return params
    plain, adapters = split(params)
    layers = dict(plain["layers"])

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        return jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)

    for name in cfg.lora.targets:
        a, b = (adapters["layers"][f"{name}_{end}"] for end in "ab")
        change = cfg.lora.scale() * jax.vmap(product)(a, b)  # layer by layer
        W = layers[name]
        layers[name] = (W.astype(jnp.float32) + change).astype(W.dtype)
    return {**plain, "layers": layers}
