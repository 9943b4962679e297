"""config + workdir -> the profiler, and the function that writes profiles."""

import functools
from collections.abc import Callable

from jax.sharding import Mesh
from ml_collections import ConfigDict

from blue.errors import UserError
from blue.hub.model import Model
from blue.inference.generate import Profile, make_generator
from blue.runtime.shapes import Shapes
from blue.runtime.sharding import put, to_host
from blue.sources import adapters
from blue.sources.encoder import load_encoder
from blue.sources.open_run import Run
from blue.sources.role import (
    check_divides,
    load_role,
    precision_of,
    stage_checkpoints,
    stage_id,
)


def load_profiler(run: Run, which: str, *, stage: str = "profiler") -> Model | None:
    """The profiler: "base", the one that `stage` starts from, or "trained" by GRPO.

    None for "trained" where no profiler stage has finished.
    """
    if which == "base":
        return load_profiler_base(run, stage=stage)
    checkpoints = stage_checkpoints(run.config, run.workdir, "profiler")
    if not checkpoints.finished():
        return None
    base = load_profiler_base(run, stage="profiler")
    params, meta, origin = adapters.load_best(
        checkpoints,
        base.cfg,
        run.mesh,
        dtype=run.config.dtype.params,
        start=lambda: base,
    )
    name = f"{base.name}, GRPO step {meta['step']}"
    return base._replace(params=params, name=name, step=meta["step"], origin=origin)


def load_profiler_base(run: Run, *, stage: str) -> Model:
    """The profiler that `stage` starts from."""
    model = load_role(run, "profiler", stage=stage, load_start=load_profiler_base)
    if stage == "warm_start" and run.config.warm_start.tie_to_encoder:
        return tie_to_encoder(model, load_encoder(run, stage=stage))
    return model


def tie_to_encoder(profiler: Model, encoder: Model) -> Model:
    """The profiler with the encoder's token embeddings, at the profiler's scale."""
    if encoder.cfg.width != profiler.cfg.width or (
        encoder.tokenizer.fingerprint != profiler.tokenizer.fingerprint
    ):
        raise UserError(
            "warm_start.tie_to_encoder needs profiler and encoder of one width and "
            f"tokenizer; widths are {profiler.cfg.width} and {encoder.cfg.width}"
        )
    scale = profiler.cfg.width**-0.5 if profiler.cfg.scale_embedding else 1.0
    own = profiler.params["embed"]
    embed = (to_host(encoder.params["embed"]) * scale).astype(own.dtype)
    embed = put(embed, own.sharding)
    return profiler._replace(params=profiler.params | {"embed": embed}, origin="")


def make_generate_with(
    config: ConfigDict,
    profiler: Model,
    mesh: Mesh,
    *,
    temperature: float,
    stage: str = "evaluate",
) -> Callable[..., list[Profile]]:
    """(params, prompts, example ids) -> one profile each.

    Keyed by (seed, stage, example).
    """
    check_divides(config.evaluate.batch_size, "evaluate.batch_size", mesh)
    return make_generator(
        profiler.cfg,
        profiler.tokenizer,
        mesh,
        shapes=[
            Shapes(config.evaluate.batch_size, tokens, 1, config.max_completion_tokens)
            for tokens in config.prompt_buckets
        ],
        precision=precision_of(config),
        temperature=temperature,
        key=(config.seed, stage_id(stage)),
    )


def make_generate(
    config: ConfigDict, profiler: Model, mesh: Mesh, *, temperature: float
) -> Callable[..., list[Profile]]:
    """(prompts, example ids) -> one profile each, of this profiler."""
    generate = make_generate_with(config, profiler, mesh, temperature=temperature)
    return functools.partial(generate, profiler.params)
