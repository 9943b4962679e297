"""Stage `profiler`: GRPO on the profiler, the paper's algorithm.

BLUE, https://arxiv.org/abs/2605.06981. Start at `run`: its loop is the algorithm box.
A step reads B users, writes G profiles each, embeds them with the frozen encoder, asks
the judge for the next item, and moves the profiler towards the better of the G.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from blue.data.batches import batch_indices
from blue.data.examples import Examples
from blue.data.log import Log
from blue.errors import UserError
from blue.evaluation import cohort
from blue.evaluation.validation import validation_ndcg
from blue.hub.model import Model
from blue.inference.embed import Embed
from blue.models.decoder import Params
from blue.rewards import program
from blue.rewards.batch import BatchSource, make_batch
from blue.rewards.experience import Experience, Sampler, Scorer, read, score, write
from blue.runtime import watchdog
from blue.runtime.sharding import no_hidden_transfers
from blue.sources.encoder import load_item_table, load_text_encoder
from blue.sources.judge import make_judge, questions_at_a_time
from blue.sources.profiler import load_profiler_base, make_generate_with
from blue.sources.role import add_adapters, check_divides, stage_id
from blue.sources.run import open_run
from blue.sources.text import prompt_format_of, query_format_of
from blue.stages.step_programs import profiler_programs
from blue.text import queries
from blue.training import session, watch
from blue.training.loop import Loop, is_finished
from blue.training.policy import UpdateBatch

logger = logging.getLogger("blue")
STAGE = "profiler"
PROGRESS = ("reward/total", "policy/kl", "policy/entropy", "rollout/truncated")


def run(config: ConfigDict, workdir: str) -> None:
    """Trains the profiler; leaves checkpoints, metrics, samples, TensorBoard files."""
    if is_finished(config, workdir, STAGE):
        return
    # --- data, models
    run = open_run(config, workdir)
    check(config, run.mesh)
    mesh, log, examples = run.mesh, run.log, run.examples
    base = load_profiler_base(run, stage=STAGE)
    # the base itself, or its very arrays with adapters beside them (profiler.lora)
    policy = add_adapters(config, "profiler", base, mesh, stage=STAGE)
    encoder = load_text_encoder(run, config.encoder, stage=STAGE)
    items = load_item_table(encoder, log, workdir)
    prompt_format = prompt_format_of(config, base)
    query_format = query_format_of(config, encoder)
    logger.info("profiler: %s; encoder: %s", base.name, encoder.name)

    # --- programs: all of them are compiled before the first step
    _, optimizer = session.optimizer_of(config, config, b2=config.adam_b2)
    ends = {"end_ids": base.tokenizer.end_ids, "pad_id": base.tokenizer.pad_id}
    run_on = profiler_programs(config, policy.cfg, mesh, config.prompt_buckets, **ends)
    sampler = Sampler(
        relayout=run_on.relayout,
        sample=run_on.sample,
        pad_id=base.tokenizer.pad_id,
        seed=config.seed,
        stage_id=stage_id(STAGE),
        mesh=mesh,
    )
    frozen_judge = config.judge.model == "reference"
    scorer = Scorer(
        tokenizer=base.tokenizer,
        encoder=encoder,
        query_format=query_format,
        titles=log.titles,
        items=items,
        ask=make_judge(
            config,
            base if frozen_judge else policy,
            mesh,
            batch_size=questions_at_a_time(config),
        ),
        rewards=make_rewards(config, mesh, items.shape[1]),
        mesh=mesh,
    )
    validate = make_validation(
        config, examples, log, policy, mesh, items, encoder.embed, query_format,
        prompt_format,
    )  # fmt: skip
    source = BatchSource(
        examples=examples,
        log=log,
        prompt_format=prompt_format,
        num_negatives=config.num_negatives,
        num_options=config.rewards.choice.num_options,
        seed=config.seed,
    )
    held_out = np.arange(config.batch_size) % len(examples.validation.user)
    watched = make_batch(examples.validation, held_out, 0, source)
    num_train = len(examples.train.user)
    facts = {"data/rows_bad": sum(log.rows_bad.values())}

    # --- the algorithm
    loop = Loop(run, STAGE, policy, optimizer, num_steps=config.num_steps)
    judge_of = lambda: base.params if frozen_judge else loop.params
    for step in loop:
        show = loop.last or step % config.log.samples_every == 0
        indices = batch_indices(
            num_train, batch_size=config.batch_size, seed=config.seed, step=step
        )
        batch = make_batch(examples.train, indices, step, source)
        data_s = time.monotonic() - loop.started
        with no_hidden_transfers():
            judge = judge_of() if show or scorer.rewards.need_judge() else None
            watchdog.beat("rollout")
            sampled = write(loop.params, batch, step, sampler)
            bucket = sampled.prompt.shape[1]
            # asked for before the host reads: the devices are not idle meanwhile
            ref_logprobs = run_on.reference[bucket](
                base.params, sampled.prompt, sampled.prompt_mask, sampled.rollout.tokens
            )
            texts = read(sampled, batch, scorer)
            watchdog.beat("reward")
            experience = score(judge, batch, texts, scorer)
            watchdog.beat("update")
            update_started = time.monotonic()
            update_batch = UpdateBatch(
                prompt=sampled.prompt,
                prompt_mask=sampled.prompt_mask,
                tokens=sampled.rollout.tokens,
                mask=sampled.rollout.mask,
                sampler_logprobs=sampled.rollout.logprobs,
                ref_logprobs=ref_logprobs,
                advantages=experience.device_advantages,
                teaching=experience.device_teaching,
            )
            loop.state, info = run_on.update[bucket](
                loop.state, loop.frozen, update_batch
            )
            learned = loop.check(
                info,
                update_batch._asdict()
                | facts_of_batch(examples.train.user, indices, experience),
            )
        if step == loop.first_step:
            session.check_first_step(config, learned, step)
        now = time.monotonic()
        metrics = facts | learned
        metrics |= watch.step_metrics(
            config, policy, experience, prompt_tokens=bucket, step_s=now - loop.started
        )
        metrics |= {"time/update_s": now - update_started, "time/data_s": data_s}
        metrics["time/checkpoint_s"] = loop.save_s
        metrics["data/prompts"] = (step + 1) * config.batch_size
        metrics["data/epoch"] = metrics["data/prompts"] / num_train

        watchdog.beat("evaluate")
        if loop.due(config.eval_every):
            metrics |= validate(loop.params)
            loop.keep_best(metrics["eval/ndcg@10"])
        if show and config.log.sample_users:
            # the same few held-out users every time, through the same programs
            sampled = write(loop.params, watched, step, sampler)
            texts = read(sampled, watched, scorer)
            watch.show_samples(
                loop.writer,
                step,
                watched,
                score(judge_of(), watched, texts, scorer),
                log.titles,
                prompts=[base.tokenizer.decode(p) for p in watched.prompts],
                count=min(config.log.sample_users, config.batch_size),
                seed=config.seed,
            )
            loop.writer.histogram(step, "reward/total", experience.total)
            loop.writer.histogram(step, "advantage", experience.advantages)
            loop.writer.histogram(step, "rollout/length", experience.mask.sum(-1))
        if loop.writer.due(step):
            metrics |= watch.profile_metrics(batch, experience, log.titles)
        loop.report(metrics, shown=PROGRESS)

    # --- the result
    watchdog.beat("save")
    known = (examples, log, items, encoder.embed, query_format)
    watch.show_projector(loop.writer, config.num_steps, *known, seed=config.seed)
    loop.finish(session.about(run, STAGE, validated=config.eval_every > 0), "profiler")
    logger.info(
        "GRPO, %d steps\n\n%s\n", config.num_steps, watch.summary(workdir, STAGE)
    )


def facts_of_batch(
    user_of: Int[np.ndarray, " n"],
    indices: Int[np.ndarray, " B"],
    experience: Experience,
) -> dict[str, Any]:
    """What a kept batch says of itself: which training examples and users (numbers, no
    names) it is made of, and their rewards."""
    about = {"example": indices, "user": user_of[indices]}
    about["reward_total"] = experience.total
    return about | {f"reward_{name}": r for name, r in experience.parts.items()}


def check(config: ConfigDict, mesh: Mesh) -> None:
    """What the user can get wrong, before anything is compiled."""
    check_divides(config.batch_size, "batch_size", mesh)
    micro = config.microbatch_size
    if micro:
        check_divides(micro, "microbatch_size", mesh)
        if config.batch_size % micro:
            raise UserError(
                f"batch_size = {config.batch_size} must be a multiple of "
                f"microbatch_size = {micro}"
            )
    if config.group_size < 2:
        raise UserError(
            f"group_size = {config.group_size} must be at least 2: advantages are "
            "relative to the group"
        )
    options = config.rewards.choice.num_options
    if not 2 <= options <= config.num_negatives + 1:
        raise UserError(
            f"rewards.choice.num_options = {options} must be between 2 and "
            f"num_negatives + 1 = {config.num_negatives + 1}"
        )
    if config.judge.model not in ("policy", "reference"):
        raise UserError(
            f"judge.model is {config.judge.model!r}; known are 'policy' and 'reference'"
        )
    program.rewards_of(config.rewards.to_dict())
    if config.max_prompt_tokens > max(config.prompt_buckets):
        raise UserError(
            f"max_prompt_tokens = {config.max_prompt_tokens} is more than the largest "
            f"of prompt_buckets = {config.prompt_buckets}"
        )


def make_rewards(config: ConfigDict, mesh: Mesh, width: int) -> program.Rewards:
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


def make_validation(
    config: ConfigDict,
    examples: Examples,
    log: Log,
    policy: Model,
    mesh: Mesh,
    items: Float[np.ndarray, "items E"],
    embed: Embed,
    query_format: queries.QueryFormat,
    prompt_format: queries.PromptFormat,
) -> Callable[[Params], dict[str, float]]:
    """params -> `eval/*` on validation users, with one sample each."""
    users = cohort.choose_cohort(
        examples.validation, log.titles, limit=config.evaluate.validation_users
    )
    generate = make_generate_with(
        config, policy, mesh, temperature=config.evaluate.sampling_temperature
    )

    def validate(params: Params) -> dict[str, float]:
        return validation_ndcg(
            users,
            titles=log.titles,
            item_table=items,
            generate=lambda rows, ids: generate(params, rows, ids),
            embed=embed,
            query_format=query_format,
            prompt_format=prompt_format,
        )

    return validate
