"""GRPO updates of a tiny model on a mesh."""

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh

from blue.runtime.shapes import Precision, Shapes
from blue.runtime.sharding import AXES, by_batch, put
from blue.training.policy import UpdateBatch

B, G, P, C = 8, 3, 12, 6

SHAPES, FLOAT32 = Shapes(B, P, G, C), Precision("float32", "float32")


def mesh_of(shape):
    count = int(np.prod(shape))
    return Mesh(np.asarray(jax.devices()[:count]).reshape(shape), AXES)


def small(family, layers=1):
    return dataclasses.replace(
        family(), vocab_size=64, width=32, mlp_width=48, head_size=8, window=5,
        num_layers=layers, pattern=family().pattern[-2:],
    )  # fmt: skip


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
