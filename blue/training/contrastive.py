"""The encoder's contrastive step: gradients and program."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from blue.inference import packing
from blue.inference.packing import RowShapes
from blue.models import decoder, encoder, lora
from blue.models.decoder import DecoderConfig, Params
from blue.runtime.programs import Program, rows
from blue.runtime.shapes import Precision
from blue.training import losses
from blue.training.optimizers import TrainState
from blue.training.update import compile_update, take_step


def row_counts(batch: int, length: int, item_tokens: int, shards: int) -> list[int]:
    """Numbers of rows to compile programs for, ascending: `batch` pairs in rows of
    `length` slots. The last suffices for any batch: a row without a query is full of
    items."""
    items_a_row = min(packing.texts_a_row(length), length // item_tokens)
    most = batch + -(-batch // items_a_row)
    return sorted({-(-most * part // (8 * shards)) * shards for part in (2, 3, 4, 8)})


def contrastive_gradients(
    cfg: DecoderConfig, precision: Precision, *, similarity_temperature: float
) -> Any:
    """(trained, frozen, first five of `packing.Rows`, places, item ids) -> (loss,
    gradients)."""

    def loss(trained: Params, frozen: Params, *batch: Array) -> Array:
        *packed, places, ids = batch
        params = lora.join(frozen, trained)
        params = decoder.gather_tables(params, jnp.dtype(precision.compute))
        vectors = encoder.embed_packed(params, cfg, *packed, precision=precision)
        vectors = vectors.reshape(-1, vectors.shape[-1])[places]
        users, items = jnp.split(vectors, 2)
        return losses.supervised_contrastive(
            users, items, ids, similarity_temperature=similarity_temperature
        )

    return jax.value_and_grad(loss)


def make_encoder_update(
    cfg: DecoderConfig,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    shapes: RowShapes,
    precision: Precision,
    *,
    pairs: int,
    similarity_temperature: float,
) -> Program:
    """(TrainState, frozen, first five of `packing.Rows`, places [2B], item ids [B]) ->
    (TrainState, metrics), state donated, for B = `pairs`.

    The batch's other items are the negatives, over the whole mesh: the product of all
    queries with all items is one global matrix. places: of the queries, then of the
    items, among the R S vectors of the rows. Equal texts may share a place.
    """
    gradients = contrastive_gradients(
        cfg, precision, similarity_temperature=similarity_temperature
    )

    def update(state: TrainState, *inputs: Any) -> tuple[TrainState, dict]:
        value, grads = gradients(state.params, *inputs)
        new, metrics = take_step(state, grads, value, optimizer, schedule)
        return new, {"policy/loss": value, **metrics}

    batch = (
        *(rows(mesh, (shapes.rows, shapes.tokens), jnp.int32) for _ in range(4)),
        rows(mesh, (shapes.rows, shapes.texts), jnp.int32),
        rows(mesh, (2 * pairs,), jnp.int32),
        rows(mesh, (pairs,), jnp.int32),
    )
    return compile_update(update, cfg, mesh, optimizer, precision.params, batch)
