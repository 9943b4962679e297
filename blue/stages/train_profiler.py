"""Stage `profiler`: GRPO on the profiler, the paper's algorithm.

BLUE, https://arxiv.org/abs/2605.06981. Start at `run`: its loop is the algorithm box. A
step writes G profiles for each of B users. The frozen encoder and the judge score them,
and the update moves the profiler towards the better of the G.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from blue.data.batches import batch_indices
from blue.data.examples import Split
from blue.evaluation import cohort
from blue.evaluation.validation import validation_ndcg
from blue.hub.model import Model
from blue.models.decoder import Params
from blue.rewards.batch import BatchSource, make_batch
from blue.rewards.experience import (
    Experience,
    Sampled,
    Sampler,
    Scorer,
    read,
    score,
    write,
)
from blue.runtime import watchdog
from blue.runtime.sharding import no_hidden_transfers
from blue.sources.encoder import load_item_table, load_text_encoder
from blue.sources.judge import make_judge, questions_at_a_time
from blue.sources.open_run import Run, open_run
from blue.sources.profiler import load_profiler_base, make_generate_with
from blue.sources.role import add_adapters, stage_id
from blue.sources.text import prompt_format_of, query_format_of
from blue.stages.step_programs import (
    StepPrograms,
    check_profiler,
    profiler_programs,
    reward_program,
)
from blue.text import queries
from blue.training import session, watch
from blue.training.alarm_watch import check_first_step
from blue.training.loop import Loop, is_finished
from blue.training.policy import UpdateBatch

logger = logging.getLogger("blue")
STAGE = "profiler"
PROGRESS = ("reward/total", "policy/kl", "policy/entropy", "rollout/truncated")


def run(config: ConfigDict, workdir: str) -> None:
    """Trains the profiler; writes checkpoints, metrics, samples, TensorBoard files."""
    if is_finished(config, workdir, STAGE):
        return
    # --- data, models
    run = open_run(config, workdir)
    check_profiler(config, run.mesh)
    mesh, train, log = run.mesh, run.examples.train, run.log
    base = load_profiler_base(run, stage=STAGE)
    # the base itself, or its very arrays with adapters beside them (profiler.lora)
    policy = add_adapters(config, "profiler", base, mesh, stage=STAGE)
    encoder = load_text_encoder(run, config.encoder, stage=STAGE)
    items = load_item_table(encoder, log, workdir)
    query_format = query_format_of(config, encoder)
    logger.info("profiler: %s; encoder: %s", base.name, encoder.name)

    # --- programs: all of them are compiled before the first step
    _, optimizer = session.optimizer_of(config, config, b2=config.adam_b2)
    ends = {"end_ids": base.tokenizer.end_ids, "pad_id": base.tokenizer.pad_id}
    run_on = profiler_programs(config, policy.cfg, mesh, config.prompt_buckets, **ends)
    source = batch_source(run, base)
    sampler = Sampler(
        relayout=run_on.relayout,
        sample=run_on.sample,
        pad_id=base.tokenizer.pad_id,
        seed=config.seed,
        stage_id=stage_id(STAGE),
        mesh=mesh,
    )
    frozen_judge = config.judge.model == "reference"
    judge_model, size = base if frozen_judge else policy, questions_at_a_time(config)
    scorer = Scorer(
        tokenizer=base.tokenizer,
        encoder=encoder,
        query_format=query_format,
        titles=log.titles,
        items=items,
        ask=make_judge(config, judge_model, mesh, batch_size=size),
        rewards=reward_program(config, mesh, items.shape[1]),
        mesh=mesh,
    )
    validate = make_validation(run, policy, scorer, source.prompt_format)
    watched = watch.choose_watched(run, source, base.tokenizer)

    # --- the algorithm
    loop = Loop(run, STAGE, policy, optimizer, num_steps=config.num_steps)
    judge_of = lambda: base.params if frozen_judge else loop.params
    for step in loop:
        show = loop.last or step % config.log.samples_every == 0
        rows = step_indices(run, step)
        batch = make_batch(train, rows, step, source)
        data_s = time.monotonic() - loop.started
        with no_hidden_transfers():
            judge = judge_of() if show or scorer.rewards.need_judge() else None
            watchdog.sign_of_life("rollout")
            sampled = write(loop.params, batch, step, sampler)
            # started before the host decodes text, so that the devices are not idle
            ref_logprobs = reference_logprobs(run_on, base.params, sampled)
            texts = read(sampled, batch, scorer)
            watchdog.sign_of_life("reward")
            experience = score(judge, batch, texts, scorer)
            watchdog.sign_of_life("update")
            update_started = time.monotonic()
            update_batch = make_update_batch(sampled, ref_logprobs, experience)
            bucket = sampled.prompt.shape[1]
            update = run_on.update[bucket]
            loop.state, info = update(loop.state, loop.frozen, update_batch)
            kept = update_batch._asdict() | facts_of_batch(train, rows, experience)
            metrics = loop.check(info, kept)
        if step == loop.first_step:
            check_first_step(config, metrics, step)
        now = time.monotonic()
        step_s = now - loop.started
        metrics |= watch.step_metrics(run, policy.cfg, experience, bucket, step_s)
        metrics |= watch.data_metrics(run, step)
        metrics |= {"time/update_s": now - update_started, "time/data_s": data_s}
        metrics["time/checkpoint_s"] = loop.save_s

        watchdog.sign_of_life("evaluate")
        if loop.due(config.eval_every):
            metrics |= validate(loop.params)
            loop.keep_best(metrics["eval/ndcg@10"])
        if show and config.log.sample_users:
            # the same held-out users every time, through the same programs
            sampled = write(loop.params, watched.batch, step, sampler)
            texts = read(sampled, watched.batch, scorer)
            shown = score(judge_of(), watched.batch, texts, scorer)
            watch.show_samples(loop.writer, step, watched, shown)
            watch.show_histograms(loop.writer, step, experience)
        if loop.writer.due(step):
            metrics |= watch.profile_metrics(batch, experience, log.titles)
        loop.report(metrics, shown=PROGRESS)

    # --- the result
    watchdog.sign_of_life("save")
    watch.show_projector(loop.writer, run, items, encoder.embed, query_format)
    loop.finish(session.facts(run, STAGE, validated=config.eval_every > 0), "profiler")
    table = watch.summary(workdir, STAGE)
    logger.info("GRPO, %d steps\n\n%s\n", config.num_steps, table)


def batch_source(run: Run, base: Model) -> BatchSource:
    """What batches are made from. Prompts are in the starting profiler's format."""
    return BatchSource(
        examples=run.examples,
        log=run.log,
        prompt_format=prompt_format_of(run.config, base),
        num_negatives=run.config.num_negatives,
        num_options=run.config.rewards.choice.num_options,
        seed=run.config.seed,
    )


def step_indices(run: Run, step: int) -> Int[np.ndarray, " B"]:
    """The training examples of a step."""
    return batch_indices(
        len(run.examples.train.user),
        batch_size=run.config.batch_size,
        seed=run.config.seed,
        step=step,
    )


def reference_logprobs(
    run_on: StepPrograms, params: Params, sampled: Sampled
) -> jax.Array:
    """Log-probabilities [B G C] of the sampled tokens under the starting profiler."""
    prompt, mask = sampled.prompt, sampled.prompt_mask
    program = run_on.reference[prompt.shape[1]]
    return program(params, prompt, mask, sampled.rollout.tokens)


def make_update_batch(
    sampled: Sampled, ref_logprobs: jax.Array, experience: Experience
) -> UpdateBatch:
    """The rollout of a step for the update; all of it is on the devices."""
    return UpdateBatch(
        prompt=sampled.prompt,
        prompt_mask=sampled.prompt_mask,
        tokens=sampled.rollout.tokens,
        mask=sampled.rollout.mask,
        sampler_logprobs=sampled.rollout.logprobs,
        ref_logprobs=ref_logprobs,
        advantages=experience.device_advantages,
        teaching=experience.device_teaching,
    )


def facts_of_batch(
    split: Split, indices: Int[np.ndarray, " B"], experience: Experience
) -> dict[str, Any]:
    """What is saved with a skipped batch: indices of its examples and users (no names),
    and their rewards."""
    facts = {"example": indices, "user": split.user[indices]}
    facts["reward_total"] = experience.total
    return facts | {f"reward_{name}": r for name, r in experience.parts.items()}


def make_validation(
    run: Run, policy: Model, scorer: Scorer, prompt_format: queries.PromptFormat
) -> Callable[[Params], dict[str, float]]:
    """params -> `eval/*` on validation users, with one sample each."""
    section, titles = run.config.evaluate, run.log.titles
    users = cohort.choose_cohort(
        run.examples.validation, titles, limit=section.validation_users
    )
    generate = make_generate_with(
        run.config, policy, run.mesh, temperature=section.sampling_temperature
    )

    def validate(params: Params) -> dict[str, float]:
        return validation_ndcg(
            users,
            titles=titles,
            item_table=scorer.items,
            generate=lambda rows, ids: generate(params, rows, ids),
            embed=scorer.encoder.embed,
            query_format=scorer.query_format,
            prompt_format=prompt_format,
        )

    return validate
