"""The programs of every training stage, described once.

A stage runs them. Stage `plan` compiles the same ones for devices that do not exist,
under `programs.descriptions_only()`. Shapes come from the config and the models'
configs, so neither weights nor data nor tokenizers are needed.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from blue.errors import UserError
from blue.inference import packing, sampling, scoring
from blue.inference.sampling import SamplePrograms
from blue.models import lora
from blue.models.decoder import DecoderConfig
from blue.rewards import program
from blue.runtime.programs import Program
from blue.runtime.shapes import Sampling, Shapes
from blue.runtime.sharding import batch_shards
from blue.sources.role import check_divides, precision_of
from blue.training import session
from blue.training.contrastive import make_encoder_update, row_counts
from blue.training.policy import Objective, make_update
from blue.training.supervised import make_sft_update


class StepPrograms(NamedTuple):
    """The programs of a GRPO step. All but the first have one for each prompt
    bucket."""

    relayout: Program
    sample: dict[int, SamplePrograms]
    reference: dict[int, Program]
    update: dict[int, Program]


def profiler_shapes(config: ConfigDict, prompt_tokens: int) -> Shapes:
    """Sizes of a GRPO step whose prompts are padded to `prompt_tokens`."""
    return Shapes(
        config.batch_size,
        prompt_tokens,
        config.group_size,
        config.max_completion_tokens,
    )


def profiler_programs(
    config: ConfigDict,
    cfg: DecoderConfig,
    mesh: Mesh,
    buckets: Sequence[int],
    *,
    end_ids: Sequence[int],
    pad_id: int,
) -> StepPrograms:
    """Sampling, reference pass and update for every prompt bucket.

    cfg: of the trained model. Only the update uses adapters: sampling takes them
    merged, and the reference is the model without them.
    """
    plain, precision = lora.without(cfg), precision_of(config)
    temperature, micro = config.sampling_temperature, config.microbatch_size
    draws = Sampling(temperature, config.top_k, config.top_p, tuple(end_ids), pad_id)
    objective = Objective(temperature, config.clip_eps, config.kl_coef)
    schedule, optimizer = session.optimizer_of(config, config, b2=config.adam_b2)
    relayout = sampling.make_relayout(cfg, mesh, precision)
    out = StepPrograms(relayout, {}, {}, {})
    for bucket in buckets:
        shapes = profiler_shapes(config, bucket)
        out.sample[bucket] = sampling.make_sample(
            plain, mesh, shapes, draws, precision.compute
        )
        out.reference[bucket] = scoring.make_completion_logprobs(
            plain, mesh, shapes, precision, temperature=temperature, microbatch=micro
        )
        out.update[bucket] = make_update(
            cfg, mesh, optimizer, schedule, shapes, precision, objective, micro
        )
    return out


def encoder_row_tokens(config: ConfigDict) -> int:
    """Slots of a row in the encoder's stage."""
    section = config.train_encoder
    return max(section.query_tokens, section.item_tokens)


def encoder_programs(
    config: ConfigDict, cfg: DecoderConfig, mesh: Mesh
) -> dict[int, Program]:
    """The encoder's contrastive step for each number of rows, ascending."""
    section, tokens = config.train_encoder, encoder_row_tokens(config)
    schedule, optimizer = session.optimizer_of(config, section, b2=config.adam_b2)
    counts = row_counts(
        section.batch_size, tokens, section.item_tokens, batch_shards(mesh)
    )
    return {
        count: make_encoder_update(
            cfg,
            mesh,
            optimizer,
            schedule,
            packing.row_shapes(count, tokens),
            precision_of(config),
            pairs=section.batch_size,
            similarity_temperature=section.similarity_temperature,
        )
        for count in counts
    }


def warm_start_shapes(config: ConfigDict) -> dict[str, Shapes]:
    """Sizes of the batches of the warm start's tasks."""
    section = config.warm_start
    shapes = {
        "profile": Shapes(
            section.batch_size,
            config.max_prompt_tokens,
            section.targets,
            config.max_completion_tokens,
        ),
        "choice": Shapes(
            section.choice_batch_size,
            config.judge.max_prompt_tokens,
            1,
            config.judge.max_option_tokens,
        ),
    }
    return {task: shapes[task] for task in dict.fromkeys(section.tasks)}


def warm_start_programs(
    config: ConfigDict, cfg: DecoderConfig, mesh: Mesh
) -> dict[str, Program]:
    """The supervised step of each task of the warm start."""
    section, precision = config.warm_start, precision_of(config)
    schedule, optimizer = session.optimizer_of(config, section, b2=section.adam_b2)
    return {
        task: make_sft_update(cfg, mesh, optimizer, schedule, shapes, precision)
        for task, shapes in warm_start_shapes(config).items()
    }


def check_profiler(config: ConfigDict, mesh: Mesh) -> None:
    """Checks the settings before anything is compiled. Raises `UserError`."""
    check_divides(config.batch_size, "batch_size", mesh)
    micro = config.microbatch_size
    if micro:
        check_divides(micro, "microbatch_size", mesh)
        if config.batch_size % micro:
            raise UserError(
                f"batch_size = {config.batch_size} must be a multiple of "
                f"microbatch_size = {micro}"
            )
    options = config.rewards.choice.num_options
    if options > config.num_negatives + 1:
        raise UserError(
            f"rewards.choice.num_options = {options} must be at most "
            f"num_negatives + 1 = {config.num_negatives + 1}"
        )
    program.rewards_of(config.rewards.to_dict())


def reward_program(config: ConfigDict, mesh: Mesh, width: int) -> program.Rewards:
    """Compiles rewards and advantages. width: of the encoder's vectors."""
    sizes = {
        "B": config.batch_size,
        "G": config.group_size,
        "K": config.data.targets_per_example,
        "M": config.num_negatives,
        "O": config.rewards.choice.num_options,
        "E": width,
    }
    rewards = program.rewards_of(config.rewards.to_dict())
    return program.make_rewards(rewards, sizes, mesh)
