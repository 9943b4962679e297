"""Stage `profiler`: GRPO on the profiler, the paper's algorithm.

BLUE, https://arxiv.org/abs/2605.06981. Start at `run`: its loop is the algorithm box.
A step reads B users, writes G profiles each, embeds them with the frozen encoder, asks
the reader for the next item, and moves the profiler towards the better of the G.
"""

import functools
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
from blue.rewards.experience import Experience, make_batch, read, score, write
from blue.rewards.functions import RewardInputs
from blue.runtime import programs, watchdog
from blue.runtime.sharding import no_hidden_transfers
from blue.sources.encoder import load_item_table, load_text_encoder
from blue.sources.judge import make_choice, questions_at_a_time
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
    views = config.rewards.embedding
    write_profiles = functools.partial(
        write,
        relayout=run_on.relayout,
        sample=run_on.sample,
        pad_id=base.tokenizer.pad_id,
        seed=config.seed,
        stage_id=stage_id(STAGE),
        mesh=mesh,
    )
    read_profiles = functools.partial(
        read,
        encoder=encoder,
        query_format=query_format,
        view_weights=(views.history_profile, views.profile),
        tokenizer=base.tokenizer,
    )
    frozen_reader = config.rewards.choice.reader == "reference"
    score_profiles = functools.partial(
        score,
        rewards=make_rewards(config, mesh, items.shape[1]),
        choose=make_choice(
            config,
            base if frozen_reader else policy,
            mesh,
            batch_size=questions_at_a_time(config),
        ),
        items=items,
        titles=log.titles,
        mesh=mesh,
    )
    validate = make_validation(
        config, examples, log, policy, mesh, items, encoder.embed, query_format,
        prompt_format,
    )  # fmt: skip
    batch_of = functools.partial(
        make_batch,
        examples=examples,
        log=log,
        prompt_format=prompt_format,
        num_negatives=config.num_negatives,
        num_options=config.rewards.choice.num_options,
        seed=config.seed,
    )
    held_out = np.arange(config.batch_size) % len(examples.validation.user)
    watched = batch_of(examples.validation, held_out, step=0)
    num_train = len(examples.train.user)
    facts = {"data/rows_bad": sum(log.rows_bad.values())}

    # --- the algorithm
    loop = Loop(run, STAGE, policy, optimizer, num_steps=config.num_steps)
    reader_of = lambda: base.params if frozen_reader else loop.params
    for step in loop:
        show = loop.last or step % config.log.samples_every == 0
        indices = batch_indices(
            num_train, batch_size=config.batch_size, seed=config.seed, step=step
        )
        batch = batch_of(examples.train, indices, step=step)
        data_s = time.monotonic() - loop.started
        with no_hidden_transfers():
            reader = reader_of() if show or config.rewards.choice.weight else None
            watchdog.beat("rollout")
            written = write_profiles(loop.params, batch, step)
            bucket = written.prompt.shape[1]
            # asked for before the host reads: the devices are not idle meanwhile
            ref_logprobs = run_on.reference[bucket](
                base.params, written.prompt, written.prompt_mask, written.rollout.tokens
            )
            texts = read_profiles(written, batch)
            watchdog.beat("reward")
            experience = score_profiles(reader, batch, texts)
            watchdog.beat("update")
            update_started = time.monotonic()
            update_batch = UpdateBatch(
                prompt=written.prompt,
                prompt_mask=written.prompt_mask,
                tokens=written.rollout.tokens,
                mask=written.rollout.mask,
                sampler_logprobs=written.rollout.logprobs,
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
            texts = read_profiles(write_profiles(loop.params, watched, step), watched)
            watch.show_samples(
                loop.writer,
                step,
                watched,
                score_profiles(reader_of(), watched, texts),
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
    if config.rewards.choice.reader not in ("policy", "reference"):
        raise UserError(
            f"rewards.choice.reader is {config.rewards.choice.reader!r}; known are "
            "'policy' and 'reference'"
        )
    if config.max_prompt_tokens > max(config.prompt_buckets):
        raise UserError(
            f"max_prompt_tokens = {config.max_prompt_tokens} is more than the largest "
            f"of prompt_buckets = {config.prompt_buckets}"
        )


def make_rewards(config: ConfigDict, mesh: Mesh, width: int) -> programs.Program:
    """Compiles rewards and advantages with the weights of the config."""
    B, G, M = config.batch_size, config.group_size, config.num_negatives
    O, K = config.rewards.choice.num_options, config.data.targets_per_example
    row = lambda *shape: programs.rows(mesh, shape, np.float32)
    flags = lambda *shape: programs.rows(mesh, shape, np.bool_)
    inputs = RewardInputs(
        history_profile_emb=row(B, G, width),
        profile_emb=row(B, G, width),
        next_item_emb=row(B, K, width),
        next_item_mask=flags(B, K),
        negative_emb=row(B, M, width),
        negative_mask=flags(B, M),
        in_batch_mask=flags(B, K, B),
        choice_scores=row(B, G, O),
        choice_answer=row(B, O),
        finished=flags(B, G),
        repeated_words=row(B, G),
    )
    weights, options = {}, {}
    for name, fields in config.rewards.items():
        weights[name] = fields.weight
        arguments = dict(fields) if name == "embedding" else {}
        options[name] = {k: v for k, v in arguments.items() if k != "weight"}
    return program.make_rewards(mesh, inputs, weights=weights, options=options)


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
