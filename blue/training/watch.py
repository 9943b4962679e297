"""What people see of the profiler stage: metrics, samples of the same users, tables.

Nothing here changes the run. User identifiers are never written.
"""

import hashlib
import json
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float
from ml_collections import ConfigDict

from blue.evaluation import cohort, panel
from blue.inference.embed import Embed
from blue.models import flops
from blue.models.attention import platform_here
from blue.models.decoder import DecoderConfig
from blue.rewards.advantages import ZERO_STD
from blue.rewards.batch import Batch, BatchSource, make_batch
from blue.rewards.experience import Experience
from blue.runtime import programs
from blue.runtime.shapes import Shapes
from blue.sources.open_run import Run
from blue.text import queries
from blue.text.markdown import summary_table
from blue.text.tokenizer import Tokenizer
from blue.training.step_metrics import reward_metrics, rollout_metrics, speed_metrics
from blue.workdir.writer import Writer

SUMMARY = (
    "reward/total",
    "reward/embedding",
    "reward/choice",
    "reward/frac_zero_std",
    "policy/kl",
    "policy/entropy",
    "policy/sampler_gap_max",
    "rollout/length_mean",
    "rollout/truncated",
    "profile/mention_hallucination",
    "profile/in_history",
    "profile/copied",
    "profile/boilerplate",
    "profile/distinct_words",
    "optim/grad_norm",
    "optim/skipped",
    "eval/ndcg@10",
    "time/step_s",
)


def step_metrics(
    run: Run,
    cfg: DecoderConfig,
    experience: Experience,
    prompt_tokens: int,
    step_s: float,
) -> dict[str, float]:
    """`reward/*`, `rollout/*`, `speed/*` and `time/*` of one step, whose prompts were
    padded to `prompt_tokens`."""
    finished = np.array([[p.finished for p in group] for group in experience.profiles])
    metrics = reward_metrics(experience.total, experience.parts, zero_std=ZERO_STD)
    metrics |= rollout_metrics(experience.mask, finished)
    metrics |= speed_metrics(
        tokens=int(experience.mask.sum()),
        step_s=step_s,
        step_flops=flops_per_step(
            run.config,
            cfg,
            prompt_tokens=prompt_tokens,
            decode_steps=int(experience.mask.sum(axis=-1).max()),
        ),
        compiles=programs.compiles["count"],
    )
    return metrics | experience.metrics | {"time/step_s": step_s}


def data_metrics(run: Run, step: int) -> dict[str, float | int]:
    """`data/*`: rows left out of the log; prompts and epochs up to this step."""
    prompts = (step + 1) * run.config.batch_size
    return {
        "data/rows_bad": sum(run.log.rows_bad.values()),
        "data/prompts": prompts,
        "data/epoch": prompts / len(run.examples.train.user),
    }


class Watched(NamedTuple):
    """The held-out users whose profiles are shown, always the same."""

    batch: Batch
    prompts: list[str]  # as the profiler reads them
    titles: Sequence[str]  # of the catalogue
    count: int  # of the batch, shown
    seed: int  # keys the hashes of users


def choose_watched(run: Run, source: BatchSource, tokenizer: Tokenizer) -> Watched:
    """The first users of the validation split, repeated if there are too few."""
    config, validation = run.config, run.examples.validation
    held_out = np.arange(config.batch_size) % len(validation.user)
    batch = make_batch(validation, held_out, 0, source)
    prompts = [tokenizer.decode(ids) for ids in batch.prompts]
    count = min(config.log.sample_users, config.batch_size)
    return Watched(batch, prompts, run.log.titles, count, config.seed)


def profile_metrics(
    batch: Batch, experience: Experience, titles: Sequence[str]
) -> dict[str, float]:
    """`profile/*`: the panel of the first profile of every user of the batch.

    One profile of the G suffices, because all have the same distribution. 128 profiles
    of twelve words take about 20 ms on one core.
    """
    first = [group[0].text for group in experience.profiles]
    targets = [titles[int(i)] for i in batch.next_items[:, 0]]
    found = panel.statistics(first, batch.histories, targets, batch.users)
    return {f"profile/{key}": value for key, value in found.items()}


def flops_per_step(
    config: ConfigDict, cfg: DecoderConfig, *, prompt_tokens: int, decode_steps: int
) -> float:
    """FLOPs of the profiler's programs in one step: sampling up to the longest
    completion, reference pass and update. Padding and recomputed layers count; the
    encoder and the judge do not."""
    shapes = Shapes(
        config.batch_size,
        prompt_tokens,
        config.group_size,
        config.max_completion_tokens,
    )
    tiles = platform_here() == "tpu"
    return (
        flops.rollout(cfg, shapes, steps=decode_steps, tiles=tiles)
        + flops.reference(cfg, shapes, tiles=tiles)
        + flops.update(cfg, shapes, remat=config.remat, tiles=tiles)
    )


def summary(workdir: str, stage: str) -> str:
    """The run in one table: each curve's mean over its first and its last tenth."""
    text = (epath.Path(workdir) / "metrics.jsonl").read_text()
    rows = [r for r in map(json.loads, text.splitlines()) if r["stage"] == stage]
    tenth = max(1, len(rows) // 10)

    def mean(part: list[dict[str, Any]], key: str) -> str:
        values = [row[key] for row in part if row.get(key) is not None]
        return f"{np.mean(values):.4g}" if values else "-"

    table = [
        [key, mean(rows[:tenth], key), mean(rows[-tenth:], key)] for key in SUMMARY
    ]
    return summary_table(table, ["mean of", "first tenth", "last tenth"])


def user_hash(user: str, seed: int) -> str:
    """A hash of the user id, for samples: the id itself is never written."""
    return hashlib.blake2b(f"{seed}/{user}".encode(), digest_size=6).hexdigest()


def sample_rows(
    batch: Batch, experience: Experience, titles: Sequence[str], count: int, seed: int
) -> list[dict[str, Any]]:
    """The first profile of the first `count` users, as samples.jsonl shows it."""
    rows = []
    for b in range(count):
        rows.append(
            {
                "user": user_hash(batch.users[b], seed),
                "history": batch.histories[b],
                "next_item": titles[batch.next_items[b, 0]],
                "profile": experience.profiles[b][0].text,
                "finished": experience.profiles[b][0].finished,
                "rewards": {k: float(v[b, 0]) for k, v in experience.parts.items()},
                "reward": float(experience.total[b, 0]),
                "advantage": float(experience.advantages[b, 0]),
            }
        )
    return rows


def sample_markdown(row: dict[str, Any], prompt: str) -> str:
    """One sample as a TensorBoard text panel: an indented block is never markup."""
    rewards = ", ".join(f"{k} {v:.3f}" for k, v in row["rewards"].items())
    lines = [
        f"user: {row['user']}",
        f"prompt: {prompt}",
        f"history: {'; '.join(row['history'])}",
        f"next item: {row['next_item']}",
        f"profile: {row['profile']}",
        f"rewards: {rewards}; total {row['reward']:.3f}, "
        f"advantage {row['advantage']:+.3f}",
    ]
    wrapped = (textwrap.wrap(" ".join(line.split()), 110) for line in lines)
    return "\n".join("    " + "\n        ".join(line) for line in wrapped)


def show_samples(
    writer: Writer, step: int, watched: Watched, experience: Experience
) -> None:
    """Writes the watched users' first profiles to samples.jsonl and TensorBoard."""
    batch, titles, count, seed = (
        watched.batch, watched.titles, watched.count, watched.seed
    )  # fmt: skip
    rows = sample_rows(batch, experience, titles, count, seed)
    writer.samples(step, rows)
    for n, row in enumerate(rows):
        writer.text(step, f"samples/{n}", sample_markdown(row, watched.prompts[n]))


def show_histograms(writer: Writer, step: int, experience: Experience) -> None:
    """Rewards, advantages and lengths of a step's profiles, for TensorBoard."""
    # not `reward/total`: TensorBoard shows one kind of chart a tag
    writer.histogram(step, "reward/distribution", experience.total)
    writer.histogram(step, "advantage", experience.advantages)
    writer.histogram(step, "rollout/length", experience.mask.sum(-1))


def show_projector(
    writer: Writer,
    run: Run,
    items: Float[np.ndarray, "items E"],
    embed: Embed,
    query_format: queries.QueryFormat,
) -> None:
    """Items and validation users (recent history) as points of one space.

    Coloured by kind; a user is a hash and the newest titles.
    """
    log, config = run.log, run.config
    users = cohort.choose_cohort(run.examples.validation, log.titles, limit=500)
    texts = [queries.recent_query(query_format, h) for h in users.histories]
    points = np.concatenate([items[:5000], embed(texts)])
    names = [
        user_hash(log.user_ids[user], config.seed)
        for user in users.split.user[users.rows]
    ]
    labels = [("item", title) for title in log.titles[:5000]]
    labels += [
        ("user", f"{name}: {'; '.join(titles[-3:])}")
        for name, titles in zip(names, users.histories, strict=True)
    ]
    writer.projector(config.num_steps, "users_and_items", points, labels)
