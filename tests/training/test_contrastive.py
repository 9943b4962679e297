"""The encoder's update against each text by itself."""

import jax
import jax.numpy as jnp
import numpy as np

from blue.inference.packing import RowShapes
from blue.models import encoder, qwen3
from blue.models.params import abstract_params, make_init
from blue.runtime.sharding import by_batch, put, to_host
from blue.stages import train_encoder
from blue.training import losses, optimizers
from blue.training.contrastive import make_encoder_update, row_counts
from blue.training.optimizers import apply_gradients, make_optimizer, make_schedule
from tests.helpers.updates import FLOAT32, B, P, batch_on, mesh_of, small


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
