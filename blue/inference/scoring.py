"""Programs that score: log-probabilities, option letters, embeddings."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from blue.inference.packing import RowShapes
from blue.models import decoder, encoder
from blue.models.decoder import DecoderConfig, Params
from blue.models.logprobs import TokenScores, token_logprobs
from blue.models.params import abstract_params
from blue.runtime.programs import Program, compile_program, rows
from blue.runtime.shapes import Precision, Shapes
from blue.runtime.sharding import BATCH, by_batch, keep_rows

LOGITS_BUDGET = 2**26  # float32 logits of one head chunk a device: 256 MiB


def head_chunk(cfg: DecoderConfig, row_count: int, mesh: Mesh) -> int:
    """Completion positions whose logits exist at once."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    per_position = -(-row_count // shards) * cfg.vocab_size
    return max(1, LOGITS_BUDGET // per_position)


def completion_scores(
    params: Params,
    cfg: DecoderConfig,
    prompt: Array,
    prompt_mask: Array,
    tokens: Array,
    *,
    mesh: Mesh,
    temperature: float,
    precision: Precision,
) -> TokenScores:
    """Log-probability and entropy of every completion token; inside of a program."""
    dtype = jnp.dtype(precision.compute)
    params = decoder.gather_tables(params, dtype)
    hidden = decoder.group_forward(
        params, cfg, prompt, prompt_mask, tokens, dtype=dtype, remat=precision.remat
    )
    chunk = head_chunk(cfg, tokens.shape[0] * tokens.shape[1], mesh)
    score = functools.partial(token_logprobs, temperature=temperature, chunk=chunk)
    # Each device processes its own rows, so the head's gradient, as large as the head,
    # is summed over devices once and not for every chunk.
    by_device = jax.shard_map(
        score,
        in_specs=(BATCH, BATCH, PartitionSpec()),
        out_specs=BATCH,
        axis_names={*BATCH[0]},
        mesh=mesh,
        check_vma=False,  # else the sum is inside the loop over chunks
    )
    return by_device(hidden, tokens, decoder.head(params))


def split_rows(rows: Array, size: int) -> Array:
    """[B ...] -> [B / size, size, ...]: row b goes to part b % (B / size), so each part
    is spread over all devices."""
    count = rows.shape[0] // size
    return jnp.swapaxes(rows.reshape(size, count, *rows.shape[1:]), 0, 1)


@functools.cache
def make_completion_logprobs(
    cfg: DecoderConfig,
    mesh: Mesh,
    shapes: Shapes,
    precision: Precision,
    *,
    temperature: float,
    microbatch: int = 0,
) -> Program:
    """(params, prompt, mask, tokens [B G C]) -> log-probabilities [B G C].

    Used for the reference pass and the judge's likelihood of option titles. It
    processes `microbatch` prompts at a time; 0: all.
    """
    B, P, G, C = shapes
    micro = microbatch or B
    precision = precision._replace(remat="")  # there is no backward pass

    def run(params: Params, prompt: Array, mask: Array, tokens: Array) -> Array:
        def score(batch: tuple[Array, ...]) -> Array:
            return completion_scores(
                params, cfg, *keep_rows(batch),
                mesh=mesh, temperature=temperature, precision=precision,
            ).logprobs  # fmt: skip

        batch = (prompt, mask, tokens)
        if micro == B:
            return score(batch)
        out = jax.lax.map(score, jax.tree.map(lambda a: split_rows(a, micro), batch))
        return jnp.swapaxes(out, 0, 1).reshape(tokens.shape)

    args = (
        abstract_params(cfg, mesh, precision.params),
        rows(mesh, (B, P), jnp.int32),
        rows(mesh, (B, P), jnp.bool_),
        rows(mesh, (B, G, C), jnp.int32),
    )
    return compile_program(run, args, out_shardings=by_batch(mesh))


@functools.cache
def make_letter_logits(
    cfg: DecoderConfig,
    mesh: Mesh,
    shapes: Shapes,
    precision: Precision,
    *,
    letter_ids: tuple[int, ...],
) -> Program:
    """(params, question, mask) -> logits of the option letters at the answer [B O].

    shapes: of the questions, prompts alone.
    """
    letters, dtype = jnp.asarray(letter_ids), jnp.dtype(precision.compute)

    def run(params: Params, tokens: Array, mask: Array) -> Array:
        params = decoder.gather_tables(params, dtype)
        hidden = decoder.forward(params, cfg, tokens, mask, dtype=dtype)
        head = decoder.head(params)[letters].astype(hidden.dtype)
        return jnp.einsum(
            "BD,OD->BO", hidden[:, -1], head, preferred_element_type=jnp.float32
        )

    args = (
        abstract_params(cfg, mesh, precision.params),
        rows(mesh, (shapes.batch, shapes.prompt), jnp.int32),
        rows(mesh, (shapes.batch, shapes.prompt), jnp.bool_),
    )
    return compile_program(run, args, out_shardings=by_batch(mesh))


@functools.cache
def make_embed(
    cfg: DecoderConfig, mesh: Mesh, shapes: RowShapes, precision: Precision
) -> Program:
    """(params, the first five of `packing.Rows`) -> unit vectors [R S E], float32."""
    precision = precision._replace(remat="")  # there is no backward pass

    def run(params: Params, *arrays: Array) -> Array:
        params = decoder.gather_tables(params, jnp.dtype(precision.compute))
        return encoder.embed_packed(params, cfg, *arrays, precision=precision)

    args = (
        abstract_params(cfg, mesh, precision.params),
        *(rows(mesh, (shapes.rows, shapes.tokens), jnp.int32) for _ in range(4)),
        rows(mesh, (shapes.rows, shapes.texts), jnp.int32),
    )
    return compile_program(run, args, out_shardings=by_batch(mesh))
