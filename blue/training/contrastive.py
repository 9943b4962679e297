"""The encoder's contrastive step: gradients and program."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from blue.inference import packing
from blue.models import decoder, encoder, lora
from blue.models.decoder import DecoderConfig, Params
from blue.runtime.programs import Program, rows
from blue.training import losses
from blue.training.optimizers import TrainState
from blue.training.update import compile_update, finish_supervised


def row_counts(batch: int, length: int, item_tokens: int, shards: int) -> list[int]:
    """Rows of the programs that are compiled, ascending, for `batch` pairs in rows of
    `length` slots. The last holds any batch: a row without a query is full of items."""
    items_a_row = min(packing.texts_a_row(length), length // item_tokens)
    most = batch + -(-batch // items_a_row)
    return sorted({-(-most * part // (8 * shards)) * shards for part in (2, 3, 4, 8)})


def contrastive_gradients(
    cfg: DecoderConfig, *, similarity_temperature: float, dtype: str, remat: str
) -> Any:
    """(trained, frozen, first five of `packing.Rows`, places, item ids) -> (loss,
    gradients)."""

    def loss(
        trained: Params,
        frozen: Params,
        tokens: Array,
        segment: Array,
        parent: Array,
        position: Array,
        ends: Array,
        places: Array,
        ids: Array,
    ) -> Array:
        params = lora.join(frozen, trained)
        params = decoder.gather_tables(params, jnp.dtype(dtype))
        vectors = encoder.embed_packed(
            params, cfg, tokens, segment, parent, position, ends,
            dtype=jnp.dtype(dtype), remat=remat,
        )  # fmt: skip
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
    *,
    batch_size: int,
    num_rows: int,
    tokens: int,
    texts: int,
    similarity_temperature: float,
    params_dtype: str,
    dtype: str,
    remat: str,
) -> Program:
    """(TrainState, frozen, first five of `packing.Rows`, places [2B], item ids [B]) ->
    (TrainState, metrics), state donated.

    The batch's other items are the negatives, over the whole mesh: the product of all
    queries with all items is one global matrix. The rows are R = `num_rows` by T =
    `tokens` with S = `texts`; places: of the queries, then of the items, among the R S
    vectors. Equal texts may share a place.
    """
    gradients = contrastive_gradients(
        cfg, similarity_temperature=similarity_temperature, dtype=dtype, remat=remat
    )

    def update(state: TrainState, *inputs: Any) -> tuple[TrainState, dict]:
        value, grads = gradients(state.params, *inputs)
        return finish_supervised(state, grads, value, optimizer, schedule)

    batch = (
        *(rows(mesh, (num_rows, tokens), jnp.int32) for _ in range(4)),
        rows(mesh, (num_rows, texts), jnp.int32),
        rows(mesh, (2 * batch_size,), jnp.int32),
        rows(mesh, (batch_size,), jnp.int32),
    )
    return compile_update(update, cfg, mesh, optimizer, params_dtype, batch)
