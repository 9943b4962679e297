"""Supervised updates of adapters."""

import dataclasses

import jax
import numpy as np

from blue.models import lora
from blue.models.params import shapes_of
from blue.runtime.shapes import Precision, Shapes
from blue.runtime.sharding import by_batch, put
from blue.training import optimizers
from blue.training.supervised import make_sft_update
from tests.helpers.small_adapters import (
    EVERY,
    QWEN,
    B,
    P,
    fresh_params,
    grpo_batch,
    make_optimizer_at,
    mesh_of,
)


def test_adapters_learn_what_comes_next():
    """A random one-layer model learns to say token 7, as loudly as its frozen head can.

    The norms of states and embeddings bound the logits (1.34 nats).
    """
    mesh = mesh_of(1, 1, 1)
    cfg = dataclasses.replace(QWEN, num_layers=1, lora=EVERY)
    schedule, optimizer = make_optimizer_at(3e-2)
    params = fresh_params(cfg)
    frozen, trained = lora.split(
        put(params, jax.tree.map(lambda x: by_batch(mesh), params))
    )
    state = optimizers.make_init_state(shapes_of(trained), optimizer, mesh)(trained)
    update = make_sft_update(
        cfg, mesh, optimizer, schedule, Shapes(B, P, 1, 2),
        Precision("float32", "float32"),
    )  # fmt: skip
    batch = grpo_batch(mesh)
    targets = put(np.full((B, 1, 2), 7, np.int32), by_batch(mesh))
    keep = put(np.ones((B, 1, 2), bool), by_batch(mesh))
    losses = []
    for _ in range(12):
        state, info = update(
            state, frozen, batch.prompt, batch.prompt_mask, targets, keep
        )
        losses.append(float(info["policy/loss"]))
    assert losses[0] > 4 and losses[-1] < 1.5, losses
