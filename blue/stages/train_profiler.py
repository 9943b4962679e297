"""Stage `profiler`: GRPO on the profiler, the paper's algorithm.

BLUE, https://arxiv.org/abs/2605.06981. Start at `run`: its loop is the algorithm box.
A step reads B users, writes G profiles each, embeds them with the frozen encoder, asks
the judge for the next item, and moves the profiler towards the better of the G.
"""

import functools
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

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
from blue.hub import export
from blue.hub.model import Model
from blue.inference import sampling, scoring
from blue.inference.embed import Embed
from blue.inference.rollout import Rollout
from blue.models import lora
from blue.models.decoder import Params
from blue.rewards import program
from blue.rewards.batch import BatchSource, make_batch
from blue.rewards.experience import Experience, Sampler, Scorer, read, score, write
from blue.runtime import preemption, programs, tracing, watchdog
from blue.runtime.sharding import make_mesh, no_hidden_transfers, to_host
from blue.sources.data import load_examples, load_log
from blue.sources.encoder import load_item_table, load_text_encoder
from blue.sources.judge import make_judge
from blue.sources.profiler import (
    add_adapters,
    check_divides,
    load_profiler_base,
    make_generate_with,
    stage_checkpoints,
    stage_id,
)
from blue.sources.text import prompt_format_of, query_format_of
from blue.text import queries
from blue.training import session, watch
from blue.training.optimizers import TrainState
from blue.training.policy import UpdateBatch, make_update
from blue.workdir.checkpoints import Checkpoints
from blue.workdir.writer import Writer

logger = logging.getLogger("blue")
STAGE = "profiler"
PROGRESS = ("reward/total", "policy/kl", "policy/entropy", "rollout/truncated")


class StepPrograms(NamedTuple):
    """The compiled programs of a step, by prompt bucket."""

    sample: dict[int, Callable[..., Rollout]]
    reference: dict[int, programs.Program]
    update: dict[int, programs.Program]


def run(config: ConfigDict, workdir: str) -> None:
    """Trains the profiler; leaves checkpoints, metrics, samples, TensorBoard files."""
    # --- data, models
    checkpoints = stage_checkpoints(config, workdir, STAGE)
    if checkpoints.finished():
        logger.info("stage %s is finished already: skipped", STAGE)
        return
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    check(config, mesh)
    log = load_log(config, workdir)
    examples = load_examples(config, log, workdir)
    base = load_profiler_base(config, log, workdir, mesh, stage=STAGE)
    # the base itself, or its very arrays with adapters beside them (profiler.lora)
    policy = add_adapters(config, "profiler", base, mesh, stage=STAGE)
    encoder = load_text_encoder(config, config.encoder, log, workdir, mesh, stage=STAGE)
    items = load_item_table(encoder, log, workdir)
    prompt_format = prompt_format_of(config, base)
    query_format = query_format_of(config, encoder)
    logger.info("profiler: %s; encoder: %s", base.name, encoder.name)

    # --- programs: all of them are compiled here
    schedule, optimizer = session.optimizer_of(config, config, b2=config.adam_b2)
    run_on = build_programs(config, base, policy, mesh, optimizer, schedule)
    sampler = Sampler(
        relayout=sampling.make_relayout(
            policy.cfg,
            mesh,
            params_dtype=config.dtype.params,
            dtype=config.dtype.compute,
        ),
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
            batch_size=(config.microbatch_size or config.batch_size)
            * (config.group_size + 1),
        ),
        rewards=make_rewards(config, mesh, items.shape[1]),
        mesh=mesh,
    )
    validate = make_validation(
        config, examples, log, policy, mesh, items, encoder.embed, query_format,
        prompt_format,
    )  # fmt: skip

    # --- state
    note = session.note(config, policy, data=examples.fingerprint, stage=STAGE)
    state, frozen, first_step = session.start(
        checkpoints, optimizer, policy, mesh, note, config.resume
    )
    params_of = lambda state: lora.join(frozen, state.params)
    writer = Writer(
        workdir,
        stage=STAGE,
        first_step=first_step,
        num_steps=config.num_steps,
        every=config.log.every,
        tensorboard=config.log.tensorboard,
        hparams=config.to_dict(),
    )
    alarms_at = session.watch_alarms(config, workdir, STAGE, writer)
    keep_batch = functools.partial(keep_scored, workdir, examples.train.user)
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
    judge_of = lambda state: base.params if frozen_judge else params_of(state)
    num_train = len(examples.train.user)
    facts = {"data/rows_bad": sum(log.rows_bad.values())}

    programs.wait()
    save_s = 0.0
    trace_folder = f"{workdir}/tensorboard/{STAGE}"

    # --- the algorithm
    steps = range(first_step, config.num_steps)
    for step in tracing.steps(steps, config.profile_steps, trace_folder):
        started, done = time.monotonic(), step + 1
        last = done == config.num_steps
        show = last or step % config.log.samples_every == 0
        ask = show or scorer.rewards.need_judge()

        indices = batch_indices(
            num_train, batch_size=config.batch_size, seed=config.seed, step=step
        )
        watchdog.beat("data", step=step)
        batch = make_batch(examples.train, indices, step, source)
        data_s = time.monotonic() - started
        with no_hidden_transfers():
            judge = judge_of(state) if ask else None
            watchdog.beat("rollout")
            sampled = write(params_of(state), batch, step, sampler)
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
            state, info = run_on.update[bucket](state, frozen, update_batch)
            info = {key: float(value) for key, value in to_host(info).items()}
        keep = functools.partial(keep_batch, step, indices, update_batch, experience)
        session.stop_if_not_finite(info, step, config.max_nonfinite, keep)
        if step == first_step:
            session.check_first_step(config, info, step)
        now = time.monotonic()
        metrics = facts | info
        metrics |= watch.step_metrics(
            config, policy, experience, prompt_tokens=bucket, step_s=now - started
        )
        metrics |= {"time/update_s": now - update_started, "time/data_s": data_s}
        metrics["time/checkpoint_s"] = save_s  # of the newest save: lines come first
        metrics["data/prompts"] = done * config.batch_size
        metrics["data/epoch"] = done * config.batch_size / num_train

        watchdog.beat("evaluate")
        if config.eval_every and (last or done % config.eval_every == 0):
            metrics |= validate(params_of(state))
            keep_best(checkpoints, done, state, note, metrics["eval/ndcg@10"])
        if show and config.log.sample_users:
            # the same few held-out users every time, through the same programs
            sampled = write(params_of(state), watched, step, sampler)
            texts = read(sampled, watched, scorer)
            watch.show_samples(
                writer,
                step,
                watched,
                score(judge_of(state), watched, texts, scorer),
                log.titles,
                prompts=[base.tokenizer.decode(p) for p in watched.prompts],
                count=min(config.log.sample_users, config.batch_size),
                seed=config.seed,
            )
            writer.histogram(step, "reward/total", experience.total)
            writer.histogram(step, "advantage", experience.advantages)
            writer.histogram(step, "rollout/length", experience.mask.sum(-1))
        if writer.due(step):
            metrics |= watch.profile_metrics(batch, experience, log.titles)
            metrics |= alarms_at(step, metrics)
            writer.scalars(step, metrics)
        writer.progress(step, {k: metrics[k] for k in PROGRESS})
        stop = preemption.requested()
        if last or stop or done % config.checkpoint_every == 0:
            watchdog.beat("save")
            saving = time.monotonic()
            checkpoints.save(done, state, note)
            save_s = time.monotonic() - saving
        if stop:
            session.leave(writer, done)

    # --- leave
    watchdog.beat("save")
    if checkpoints.best() is None:  # no validation was asked for
        keep_best(checkpoints, config.num_steps, state, note, 0.0)
    known = (examples, log, items, encoder.embed, query_format)
    watch.show_projector(writer, config.num_steps, *known, seed=config.seed)
    writer.close()
    about = session.about(
        config, log, examples, stage=STAGE, validated=config.eval_every > 0
    )
    export.write(checkpoints, policy, workdir, STAGE, about)
    checkpoints.finish({"steps": config.num_steps})
    checkpoints.close()
    logger.info(
        "GRPO, %d steps\n\n%s\n", config.num_steps, watch.summary(workdir, STAGE)
    )


def keep_scored(
    workdir: str,
    user_of: Int[np.ndarray, " n"],
    step: int,
    indices: Int[np.ndarray, " B"],
    update_batch: UpdateBatch,
    experience: Experience,
) -> None:
    """Writes the batch of a skipped update: its arrays, rewards, and which training
    examples and users (numbers, no names) it is made of."""
    about = {
        "example": indices,
        "user": user_of[indices],
        "reward_total": experience.total,
    }
    about |= {f"reward_{name}": part for name, part in experience.parts.items()}
    session.keep_batch(workdir, STAGE, step, update_batch._asdict() | about)


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


def build_programs(
    config: ConfigDict,
    base: Model,
    policy: Model,
    mesh: Mesh,
    optimizer: Any,
    schedule: Any,
) -> StepPrograms:
    """Compiles sampling, reference pass and update for every prompt bucket.

    Adapters are the update's alone: what samples has them merged.
    """
    tokenizer, out = base.tokenizer, StepPrograms({}, {}, {})
    for bucket in config.prompt_buckets:
        sizes = {
            "batch_size": config.batch_size,
            "prompt_tokens": bucket,
            "group_size": config.group_size,
            "max_tokens": config.max_completion_tokens,
            "temperature": config.sampling_temperature,
            "dtype": config.dtype.compute,
        }
        out.sample[bucket] = sampling.make_sample(
            base.cfg,
            mesh,
            top_k=config.top_k,
            top_p=config.top_p,
            end_ids=tuple(tokenizer.end_ids),
            pad_id=tokenizer.pad_id,
            **sizes,
        )
        out.reference[bucket] = scoring.make_completion_logprobs(
            base.cfg,
            mesh,
            params_dtype=config.dtype.params,
            microbatch_size=config.microbatch_size,
            **sizes,
        )
        out.update[bucket] = make_update(
            policy.cfg,
            mesh,
            optimizer,
            schedule,
            microbatch_size=config.microbatch_size,
            clip_eps=config.clip_eps,
            kl_coef=config.kl_coef,
            params_dtype=config.dtype.params,
            remat=config.remat,
            **sizes,
        )
    return out


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


def keep_best(
    checkpoints: Checkpoints, step: int, state: TrainState, note: dict, value: float
) -> None:
    """Replaces `best` where this step's validation is at least as good, or where a
    resumed run does the same step again."""
    best = checkpoints.best()
    if best is None or value > best["value"] or best["step"] >= step:
        checkpoints.save_best(step, state.params, note, value)


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
    users = cohort.choose_users(
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
