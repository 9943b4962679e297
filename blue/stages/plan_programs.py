"""What a plan compiles: every program of a run, and the arrays resident beside them.

The programs are the stages' own descriptions.
"""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blue.evaluation import ranking
from blue.inference import sampling, scoring
from blue.models import flops, lora, splash
from blue.models.decoder import DecoderConfig
from blue.models.params import abstract_params
from blue.rewards.judges import make_choice_program
from blue.sources.encoder import own_encoder_programs
from blue.sources.judge import choice_shapes, questions_at_a_time
from blue.sources.role import fresh_adapters, precision_of
from blue.stages.plan_compile import GIB, Part
from blue.stages.step_programs import (
    encoder_programs,
    encoder_row_tokens,
    profiler_programs,
    profiler_shapes,
)
from blue.training import optimizers, session

OWN_ITEMS = 256  # of a user's history, which the ranking excludes
END, PAD = (1,), 0  # in place of a tokenizer's ids: no shape depends on them


def make_parts(
    config: ConfigDict, mesh: Mesh, profiler: DecoderConfig, encoder: DecoderConfig
) -> dict[str, Part]:
    """Every program of a GRPO step, of the encoder's stage and of an evaluation."""
    parts = _step_parts(config, mesh, profiler)
    if config.judge.scoring == "letters":
        parts["choice"] = make_choice_part(config, mesh, profiler)
    if config.encoder.kind == "own":
        parts |= _encode_parts(config, mesh, encoder)
        parts["encoder_update"] = _encoder_update_part(config, mesh, encoder)
    parts["ranking"] = _ranking_part(config, mesh, encoder.width)
    return parts


def _step_parts(
    config: ConfigDict, mesh: Mesh, profiler: DecoderConfig
) -> dict[str, Part]:
    """A GRPO step at the longest prompts."""
    longest = max(config.prompt_buckets)
    policy = dataclasses.replace(profiler, lora=fresh_adapters(config.profiler))
    found = profiler_programs(config, policy, mesh, (longest,), end_ids=END, pad_id=PAD)
    shapes = profiler_shapes(config, longest)
    users = config.microbatch_size or shapes.batch  # at a time
    chunk = scoring.head_chunk(profiler, users * shapes.group, mesh)
    count = {"tiles": has_tiles(mesh)}
    return {
        "relayout": Part(
            found.relayout, flops.relayout(), ("profiler",), "rollout", 1
        ),
        "prefill": Part(
            found.sample[longest].prefill, flops.prefill(profiler, shapes, **count),
            ("decode_copy",), "rollout", 1,
        ),
        "decode_step": Part(
            found.sample[longest].decode, flops.decode_step(profiler, shapes),
            ("decode_copy",), "rollout", shapes.completion, True,
        ),
        "reference": Part(
            found.reference[longest],
            flops.reference(profiler, shapes, chunk=chunk, **count),
            ("reference",), "reference", 1,
        ),
        "update": Part(
            found.update[longest],
            flops.update(policy, shapes, remat=config.remat, chunk=chunk, **count),
            ("profiler", "optimizer"), "update", 1,
        ),
    }  # fmt: skip


def make_choice_part(config: ConfigDict, mesh: Mesh, cfg: DecoderConfig) -> Part:
    """The judge's multiple choice: all profiles of a step, and the empty profile."""
    shapes = choice_shapes(config, questions_at_a_time(config))
    letters = tuple(range(shapes.group))
    program = make_choice_program(
        cfg, mesh, shapes, precision_of(config), scoring="letters", letter_ids=letters
    )
    work = flops.choice(
        cfg, shapes.batch, shapes.prompt, shapes.group, tiles=has_tiles(mesh)
    )
    reads = "profiler" if config.judge.model == "policy" else "reference"
    calls = config.batch_size // (config.microbatch_size or config.batch_size)
    return Part(program, work, (reads,), "choice", calls)


def _encode_parts(
    config: ConfigDict, mesh: Mesh, cfg: DecoderConfig
) -> dict[str, Part]:
    """The encoder that reads a step's profiles, and the catalogue."""
    size, found = config.encoder.batch_size, own_encoder_programs(config, cfg, mesh)
    longest, items = max(found), config.train_encoder.item_tokens
    short = min(length for length in found if length >= min(items, longest))
    profiles = 2 * config.batch_size * config.group_size  # both views
    # upper bound: all have the maximum length and share no beginning
    rows = math.ceil(profiles / (longest // config.encoder.max_tokens))
    work = lambda tokens: flops.encode(cfg, size, tokens, **_count_rows(mesh, tokens))
    return {
        "encode": Part(
            found[longest], work(longest), ("encoder",), "encode",
            math.ceil(rows / size),
        ),
        "encode_items": Part(found[short], work(short), ("encoder",), "items", 0),
    }  # fmt: skip


def _encoder_update_part(config: ConfigDict, mesh: Mesh, cfg: DecoderConfig) -> Part:
    """The encoder's update, for a batch that fills the most rows."""
    trained = dataclasses.replace(cfg, lora=fresh_adapters(config.encoder))
    found, tokens = encoder_programs(config, trained, mesh), encoder_row_tokens(config)
    pairs, most = config.train_encoder.batch_size, max(found)
    work = flops.encoder_update(
        trained, pairs, most, tokens, remat=config.remat, **_count_rows(mesh, tokens)
    )
    return Part(found[most], work, (), "", 0)


def _count_rows(mesh: Mesh, tokens: int) -> dict[str, bool]:
    """How the formulas count rows of several texts."""
    return {"tiles": has_tiles(mesh) and splash.can_number_slots(tokens)}


def _ranking_part(config: ConfigDict, mesh: Mesh, width: int) -> Part:
    """A slab of the catalogue ranked for some of an evaluation's queries."""
    columns = 2  # of weights: drawn uniformly, and by popularity
    sizes = ranking.slab_sizes(mesh, config.plan.num_items, width, columns)
    sizes = sizes._replace(own=OWN_ITEMS)
    work = flops.ranking(sizes.queries, sizes.slab, width + columns)
    return Part(ranking.make_rank_slab(mesh, sizes), work, (), "", 0)


def has_tiles(mesh: Mesh) -> bool:
    """Whether long blocks are for the kernel of models/splash.py."""
    return mesh.devices.flat[0].platform == "tpu"


def make_resident(
    config: ConfigDict, mesh: Mesh, profiler: DecoderConfig, encoder: DecoderConfig
) -> dict[str, float]:
    """GiB a chip of the arrays that stay on it for the whole stage.

    With adapters the profiler shares its matrices with the reference. The item table is
    counted as if it were spread over the chips; today it stays in host memory.
    """
    params = abstract_params(profiler, mesh, config.dtype.params)
    policy = dataclasses.replace(profiler, lora=fresh_adapters(config.profiler))
    trained = lora.split(abstract_params(policy, mesh, config.dtype.params))[1]
    _, optimizer = session.optimizer_of(config, config, b2=config.adam_b2)
    state = optimizers.abstract_state(trained, optimizer, mesh)
    copy = sampling.abstract_decode_params(params, mesh, config.dtype.compute)
    texts = abstract_params(encoder, mesh, config.dtype.params)
    own = config.encoder.kind == "own"
    return {
        "profiler": gib(trained),
        "optimizer": gib(state) - gib(trained),
        "reference": gib(params),
        "decode_copy": gib(copy),
        "encoder": gib(texts) if own else 0.0,
        "item_table": config.plan.num_items * encoder.width * 4 / mesh.size / GIB,
    }


def gib(tree: Any) -> float:
    """GiB that abstract arrays take on one chip."""
    part = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(part(leaf) for leaf in jax.tree.leaves(tree)) / GIB
