"""Stage `encoder`: supervised contrastive fine-tuning of the encoder.

BLUE, https://arxiv.org/abs/2605.06981, the second stage: user text -> next item,
in-batch negatives over the whole mesh; both towers share the encoder and get gradients.
With `train_encoder.profiles` the user text is the history with that profile, and the
item is the example's next item. Without it, user texts are template profiles of
training users at any moment of their histories. This trains an encoder from random
weights.
"""

import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from blue.data.batches import batch_indices
from blue.data.examples import Split, history
from blue.data.log import Log
from blue.data.profiles import read_profiles
from blue.inference import packing
from blue.inference.pad import bucket_for
from blue.runtime import programs
from blue.runtime.sharding import (
    by_batch,
    put,
)
from blue.sources.encoder import load_encoder
from blue.sources.open_run import open_run
from blue.sources.role import add_adapters, check_divides, stage_id
from blue.sources.text import own_query_format_of
from blue.stages.step_programs import encoder_programs, encoder_row_tokens
from blue.text import queries
from blue.text.rule_profiles import template_profile
from blue.training import session
from blue.training.loop import Loop, is_finished, run_supervised

logger = logging.getLogger("blue")
STAGE = "encoder"
FEW_ITEMS = 4  # titles, at most, in a query of view `items`
PROFILE_HISTORY = 20  # newest items a template profile is written from


def query_text(
    f: queries.QueryFormat,
    view: str,
    titles: list[str],
    profile: str,
    rng: np.random.Generator,
) -> str:
    """The text of one query; a raw history has a random number of recent titles."""
    if view == "history_profile":
        return queries.history_profile_query(f, titles, profile)
    if view == "profile":
        return queries.profile_query(f, profile)
    most = FEW_ITEMS if view == "items" else f.recent_items
    return queries.history_query(f, titles[-int(rng.integers(1, most + 1)) :])


def make_pairs(
    split: Split,
    indices: np.ndarray,
    log: Log,
    f: queries.QueryFormat,
    *,
    view: str,
    profiles: dict[int, str],
    profile_items: int,
    rng: np.random.Generator,
) -> tuple[list[str], np.ndarray]:
    """Queries [B] and their positive items [B]."""
    texts, targets = [], []
    for row in indices:
        items, _ = history(split, int(row))
        target = int(split.next_item[row])
        if not profiles:  # any moment of the history is an example
            items = np.append(items, target)
            end = int(rng.integers(1, len(items)))
            items, target = items[:end], int(items[end])
        titles = [log.titles[i] for i in items]
        if profiles:
            profile = profiles[int(split.user[row])]
        else:
            words = int(rng.integers(max(1, profile_items // 2), profile_items + 1))
            profile = template_profile(
                f.templates, titles[-PROFILE_HISTORY:], num_items=words, rng=rng
            )
        texts.append(query_text(f, view, titles, profile, rng))
        targets.append(target)
    return texts, np.array(targets, np.int32)


def load_profiles(config: ConfigDict, log: Log, split: Split) -> dict[int, str]:
    """Profiles of the training users by user index; empty where none are given."""
    if not config.train_encoder.profiles:
        return {}
    users = np.unique(split.user)
    texts = read_profiles(
        config.train_encoder.profiles,
        [log.user_ids[u] for u in users],
        field="train_encoder.profiles",
    )
    return dict(zip(users.tolist(), texts, strict=True))


def pack_pairs(
    queries: Sequence[Sequence[int]],
    items: Sequence[Sequence[int]],
    *,
    length: int,
    counts: Sequence[int],
    pad_id: int,
) -> tuple[packing.Rows, Int[np.ndarray, " N"]]:
    """Packed rows, the smallest of `counts` that suffices, and the places of the
    vectors in them: of the queries, then of the items. Equal texts are computed
    once."""
    numbers: dict[tuple[int, ...], int] = {}
    texts = [numbers.setdefault(tuple(t), len(numbers)) for t in (*queries, *items)]
    (packed,) = packing.pack(
        list(numbers), lengths=[length], rows=len(texts), cost=float, pad_id=pad_id
    )
    row, slot = np.nonzero(packed.text >= 0)
    places = np.zeros(len(numbers), np.int32)
    places[packed.text[row, slot]] = row * packed.text.shape[1] + slot
    count = bucket_for(counts, int(row.max()) + 1)
    kept = [np.resize(a, (count, a.shape[1])) for a in packed[:6]]  # repeats rows
    return packing.Rows._make([*kept, packed.used]), places[texts]


def run(config: ConfigDict, workdir: str) -> None:
    """Fine-tunes the encoder on (user text, next item) pairs of training users."""
    if is_finished(config, workdir, STAGE):
        return
    section = config.train_encoder
    run = open_run(config, workdir)
    mesh, log = run.mesh, run.log
    check_divides(section.batch_size, "train_encoder.batch_size", mesh)
    examples = run.examples
    model = load_encoder(run, stage=STAGE)
    model = add_adapters(config, "encoder", model, mesh, stage=STAGE)
    logger.info("encoder: %s", model.name)
    query_format = own_query_format_of(config, model)
    profiles = load_profiles(config, log, examples.train)

    _, optimizer = session.optimizer_of(config, section, b2=config.adam_b2)
    length = encoder_row_tokens(config)
    steps = encoder_programs(config, model.cfg, mesh)
    pooled = model.tokenizer.pooled

    def fit(text: str, limit: int) -> list[int]:
        ids = pooled(text)
        return ids if len(ids) <= limit else ids[: limit - 1] + ids[-1:]

    def next_step(step: int) -> tuple[programs.Program, tuple]:
        rng = np.random.default_rng([config.seed, stage_id(STAGE), step])
        indices = batch_indices(
            len(examples.train.user),
            batch_size=section.batch_size,
            seed=config.seed,
            step=step,
        )
        texts, targets = make_pairs(
            examples.train,
            indices,
            log,
            query_format,
            view=section.queries[step % len(section.queries)],
            profiles=profiles,
            profile_items=config.warm_start.profile_items,
            rng=rng,
        )
        rows, places = pack_pairs(
            [fit(text, section.query_tokens) for text in texts],
            [fit(log.texts[i], section.item_tokens) for i in targets],
            length=length,
            counts=tuple(steps),
            pad_id=model.tokenizer.pad_id,
        )
        batch = (*rows[:5], places, targets)
        return steps[len(rows.tokens)], put(batch, by_batch(mesh))

    loop = Loop(run, STAGE, model, optimizer, num_steps=section.num_steps)
    run_supervised(loop, next_step)
    loop.finish(session.facts(run, STAGE, query_prompt=query_format.prefix), "encoder")
