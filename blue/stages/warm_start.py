"""Stage `warm_start`: supervised fine-tuning of a profiler with random weights.

Pretrained models write profiles when prompted; a tiny random one must learn to. Task
`profile`: the prompt -> template profiles of its history. Task `choice`: such a profile
-> the title the user took next, which makes it a likelihood judge. Both use
interactions of training users only, never of validation or test users.
"""

import logging
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blue.data.batches import batch_indices
from blue.data.examples import Split, history
from blue.data.log import Log
from blue.hub.model import Model
from blue.inference.pad import pad_left, pad_right
from blue.rewards import judges
from blue.runtime import programs
from blue.runtime.shapes import Shapes
from blue.runtime.sharding import by_batch, put
from blue.sources.open_run import open_run
from blue.sources.profiler import load_profiler_base
from blue.sources.role import add_adapters, check_divides, stage_id
from blue.sources.text import prompt_format_of
from blue.stages.step_programs import warm_start_programs, warm_start_shapes
from blue.text import prompts, queries
from blue.text.rule_profiles import template_profile
from blue.text.templates import Templates
from blue.training import session
from blue.training.loop import Loop, is_finished, run_supervised

logger = logging.getLogger("blue")
STAGE = "warm_start"
PROFILE_HISTORY = 20  # newest items a template profile of task choice is written from


def random_prefix(
    split: Split, row: int, rng: np.random.Generator, *, least: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """A user's items up to a random moment, their ratings, and the item taken next."""
    items, ratings = history(split, row)
    items = np.append(items, split.next_item[row])
    end = int(rng.integers(min(least, len(items) - 1), len(items)))
    return items[:end], ratings[:end], int(items[end])


def short_profile(
    templates: Templates,
    titles: Sequence[str],
    model: Model,
    *,
    num_items: int,
    max_tokens: int,
    rng: np.random.Generator,
) -> list[int]:
    """Tokens of a template profile with its end token, shortened until it fits."""
    while True:
        text = template_profile(templates, titles, num_items=num_items, rng=rng)
        ids = model.tokenizer.encode(text) + [model.tokenizer.turn_end_id]
        if len(ids) <= max_tokens or num_items == 1:
            return ids[:max_tokens]
        num_items -= 1


def profile_batch(
    split: Split,
    indices: np.ndarray,
    log: Log,
    model: Model,
    prompt_format: queries.PromptFormat,
    shapes: Shapes,
    *,
    num_items: int,
    rng: np.random.Generator,
) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts [B] and G template profiles of each, B * G."""
    rows, goals = [], []
    for row in indices:
        items, ratings, _ = random_prefix(
            split, int(row), rng, least=prompt_format.history_items
        )
        items = items[-prompt_format.history_items :]
        titles = [log.titles[i] for i in items]
        ids, _ = prompts.fit_profile_prompt(
            prompt_format.templates,
            titles,
            ratings[-len(items) :],
            model.tokenizer,
            max_tokens=prompt_format.max_tokens,
        )
        rows.append(ids)
        for _ in range(shapes.group):
            goals.append(
                short_profile(
                    prompt_format.templates,
                    titles,
                    model,
                    num_items=num_items,
                    max_tokens=shapes.completion,
                    rng=rng,
                )
            )
    return rows, goals


def choice_batch(
    split: Split,
    indices: np.ndarray,
    log: Log,
    model: Model,
    templates: Templates,
    shapes: Shapes,
    *,
    num_items: int,
    rng: np.random.Generator,
) -> tuple[list[list[int]], list[list[int]]]:
    """Title questions [B] about template profiles, and the titles taken next [B].

    One question in eight has an empty profile: it trains the prior that scores
    subtract.
    """
    rows, goals = [], []
    for row in indices:
        items, _, next_item = random_prefix(split, int(row), rng, least=5)
        titles = [log.titles[i] for i in items[-PROFILE_HISTORY:]]
        profile = template_profile(templates, titles, num_items=num_items, rng=rng)
        profile = "" if rng.random() < 1 / 8 else profile
        make = lambda p: prompts.title_message(templates, p)
        rows.append(judges.fit_message(model.tokenizer, make, profile, shapes.prompt))
        title = log.titles[next_item]
        goals.append(judges.title_target(model.tokenizer, title, shapes.completion))
    return rows, goals


def run(config: ConfigDict, workdir: str) -> None:
    """Fine-tunes the profiler on template profiles and titles of training users."""
    if is_finished(config, workdir, STAGE):
        return
    section = config.warm_start
    run = open_run(config, workdir)
    mesh, log = run.mesh, run.log
    check_divides(section.batch_size, "warm_start.batch_size", mesh)
    field = "warm_start.choice_batch_size"
    check_divides(section.choice_batch_size, field, mesh)
    examples = run.examples
    model = load_profiler_base(run, stage=STAGE)
    model = add_adapters(config, "profiler", model, mesh, stage=STAGE)
    logger.info("profiler: %s", model.name)

    _, optimizer = session.optimizer_of(config, section, b2=section.adam_b2)
    prompt_format = prompt_format_of(config, model)
    shapes = warm_start_shapes(config)
    steps = warm_start_programs(config, model.cfg, mesh)

    def next_step(step: int) -> tuple[programs.Program, tuple]:
        task = section.tasks[step % len(section.tasks)]
        rng = np.random.default_rng([config.seed, stage_id(STAGE), step])
        indices = batch_indices(
            len(examples.train.user),
            batch_size=shapes[task].batch,
            seed=config.seed,
            step=step,
        )
        if task == "profile":
            rows, goals = profile_batch(
                examples.train,
                indices,
                log,
                model,
                prompt_format,
                shapes[task],
                num_items=section.profile_items,
                rng=rng,
            )
        else:
            rows, goals = choice_batch(
                examples.train,
                indices,
                log,
                model,
                prompt_format.templates,
                shapes[task],
                num_items=section.profile_items,
                rng=rng,
            )
        batch = to_batch(rows, goals, shapes[task], model.tokenizer.pad_id, mesh)
        return steps[task], batch

    loop = Loop(run, STAGE, model, optimizer, num_steps=section.num_steps)
    run_supervised(loop, next_step)
    loop.finish(session.facts(run, STAGE), "profiler")


def to_batch(
    rows: list[list[int]],
    goals: list[list[int]],
    shape: Shapes,
    pad_id: int,
    mesh: Mesh,
) -> tuple:
    """Token lists -> padded prompts and targets on the mesh."""
    B, P, G, C = shape
    tokens, mask = pad_right(goals, C, pad_id)
    targets = tokens.reshape(B, G, C), mask.reshape(B, G, C)
    return put((*pad_left(rows, P, pad_id), *targets), by_batch(mesh))
