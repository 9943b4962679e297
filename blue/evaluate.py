"""Evaluation: do the profiles help to find the next item of users never trained on?

Stage `evaluate`. Every method turns a test user into one query; the encoder ranks the
next item among stored negatives (BLUE, https://arxiv.org/abs/2605.06981, section
"Evaluation": 99 of them). Beside the trained profiles stand the untrained ones, raw
history, trivial rankers and other users' profiles, all with intervals over users.
Training stages call `validation_ndcg`.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from blue import metrics, prompts, queries, report, sharding, sources
from blue.data.examples import Examples, Split, history
from blue.data.log import Log
from blue.data.profiles import read_profiles
from blue.errors import UserError
from blue.inference import Embed, Profile
from blue.queries import PromptFormat, QueryFormat

logger = logging.getLogger("blue")

PROFILERS = {"base": "base", "blue": "trained"}  # method -> which profiler writes
OWN_METHODS = (
    *("random", "popular", "mean_items", "empty", "all_history", "10_history"),
    *PROFILERS,
)
SHOWN_USERS = 3  # in evaluation.md

# prompts and example ids -> one profile each
Generate = Callable[[list[list[int]], list[int]], list[Profile]]
# profiles and the options of each -> scores [n options]
Choose = Callable[[list[str], list[list[str]]], np.ndarray]


class Cohort(NamedTuple):
    """The U users of one evaluation."""

    split: Split
    rows: Int[np.ndarray, " U"]  # where they are in `split`
    example_ids: Int[np.ndarray, " U"]  # key the sampling
    histories: list[list[str]]  # titles, oldest first
    candidates: Int[np.ndarray, "U I"]  # column 0: the next item; then the negatives


def choose_users(split: Split, titles: list[str], *, limit: int) -> Cohort:
    """At most `limit` users of `split`, evenly spaced; all of them when it is 0."""
    num = len(split.user)
    count = min(num, limit) if limit else num
    rows = np.arange(count) * num // max(count, 1)
    items = [history(split, int(row))[0].tolist() for row in rows]
    return Cohort(
        split=split,
        rows=rows,
        example_ids=split.ids[rows],
        histories=[[titles[i] for i in own] for own in items],
        candidates=np.concatenate(
            [split.next_item[rows, None], split.negatives[rows]], axis=1
        ),
    )


# --- calls of models


def write_profiles(
    cohort: Cohort,
    generate: Generate,
    *,
    titles: list[str],
    prompt_format: PromptFormat,
) -> list[Profile]:
    """One sampled profile for each user of `cohort`, keyed by the example ids."""
    prompt_ids = queries.profile_prompts(
        prompt_format, cohort.split, cohort.rows, titles
    )
    return generate(prompt_ids, cohort.example_ids.tolist())


def embed_texts(
    embed: Embed, texts: Mapping[str, Sequence[str]]
) -> Float[np.ndarray, "R U E"]:
    """Unit vectors of the queries of R methods; equal texts are embedded once."""
    unique = list(dict.fromkeys(t for rows in texts.values() for t in rows))
    position = {text: i for i, text in enumerate(unique)}
    vectors = embed(unique)
    return np.stack([vectors[[position[t] for t in rows]] for rows in texts.values()])


# --- scores


def cosine_scores(
    vectors: Float[np.ndarray, "R U E"],
    item_table: Float[np.ndarray, "items E"],
    candidates: Int[np.ndarray, "U I"],
) -> Float[np.ndarray, "R U I"]:
    """Cosine of each query with its user's candidates, rounded to six decimals.

    float32 knows no more of a cosine; unrounded, equal vectors would differ in the last
    bit by their column, and the ties of a collapsed encoder would go unseen.
    """
    scores = np.empty((*vectors.shape[:2], candidates.shape[1]), np.float32)
    for start in range(0, len(candidates), 128):  # bounds the gathered item vectors
        part = slice(start, start + 128)
        items = np.asarray(item_table[candidates[part]], np.float32)  # [u I E]
        by_user = vectors[:, part].swapaxes(0, 1) @ items.swapaxes(1, 2)  # [u R I]
        scores[:, part] = by_user.swapaxes(0, 1)
    return np.round(scores, 6)


def mean_item_vectors(
    cohort: Cohort, item_table: Float[np.ndarray, "items E"]
) -> Float[np.ndarray, "U E"]:
    """Mean of the vectors of all items in each user's history, at unit length."""
    items = [history(cohort.split, int(row))[0] for row in cohort.rows]
    means = np.stack([item_table[own].mean(axis=0) for own in items])
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    return (means / np.maximum(lengths, 1e-12)).astype(np.float32)


def trivial_scores(
    cohort: Cohort, item_counts: Int[np.ndarray, " items"], *, seed: int
) -> dict[str, Float[np.ndarray, "U I"]]:
    """Rankers that know nothing of the user: chance, and popularity in training."""
    num = cohort.candidates.shape[1]
    keys = [[seed, int(i)] for i in cohort.example_ids]
    return {
        "random": np.stack([np.random.default_rng(key).random(num) for key in keys]),
        "popular": item_counts[cohort.candidates].astype(np.float64),
    }


# --- validation while training


def validation_ndcg(
    cohort: Cohort,
    *,
    titles: list[str],
    item_table: Float[np.ndarray, "items E"],
    generate: Generate,
    embed: Embed,
    query_format: QueryFormat,
    prompt_format: PromptFormat,
) -> dict[str, float]:
    """`eval/*` metrics of the profiler behind `generate` on validation users.

    `eval/ndcg@10`, by which `best` is chosen, `eval/recall@10` and `eval/mrr` rank with
    recent history + profile, `eval/profile_ndcg@10` with the profile alone;
    `eval/finished` is the share of profiles with an end token. All in [0, 1].
    """
    assert cohort.histories, "no validation users"
    profiles = write_profiles(
        cohort, generate, titles=titles, prompt_format=prompt_format
    )
    written = [p.text for p in profiles]
    pairs = zip(cohort.histories, written, strict=True)
    views = {
        "both": [queries.history_profile_query(query_format, h, p) for h, p in pairs],
        "alone": [queries.profile_query(query_format, p) for p in written],
    }
    scores = cosine_scores(embed_texts(embed, views), item_table, cohort.candidates)
    both, alone = (metrics.ranking_metrics(metrics.rank_of_target(s)) for s in scores)
    values = {f"eval/{key}": float(value.mean()) for key, value in both.items()}
    values["eval/profile_ndcg@10"] = float(alone["ndcg@10"].mean())
    values["eval/finished"] = float(np.mean([p.finished for p in profiles]))
    return values


# --- the reader of the multiple-choice reward


def reader_accuracy(
    choose: Choose,
    *,
    profiles: list[str],
    options: list[list[str]],
) -> dict[str, Any]:
    """How often the reader picks option 0, the next item, with its 95% interval.

    `profiles` are made by rule from each user's recent history, so this measures the
    reader alone. Ties count as wrong. At chance, no result may rest on the reader.
    """
    scores = choose(profiles, options)
    num_right = int((metrics.rank_of_target(scores) == 1).sum())
    accuracy, low, high = metrics.share_interval(num_right, len(profiles))
    chance = 1 / len(options[0])
    return {
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "chance": chance,
        "n": len(profiles),
        "note": "reader at chance: not a result" if low <= chance else "",
    }


def history_profiles(config: ConfigDict, cohort: Cohort) -> list[str]:
    """The recent history in the reader's own kind of text, one a user.

    Readers that score by likelihood are tiny and have read template profiles only.
    """
    templates = sources.templates(config)
    profiles = []
    for example_id, titles in zip(cohort.example_ids, cohort.histories, strict=True):
        recent = titles[-config.prompts.recent_items :]
        if config.rewards.choice.scoring == "likelihood":
            rng = np.random.default_rng([config.seed, int(example_id)])
            num_items = config.warm_start.profile_items
            profile = prompts.template_profile(
                templates, recent, num_items=num_items, rng=rng
            )
        else:
            profile = prompts.history_view(templates, recent)
        profiles.append(profile)
    return profiles


# --- the stage


def check(config: ConfigDict, split: Split, cohort: Cohort) -> None:
    """What a user can get wrong, told before a model is loaded."""
    for name in config.evaluate.profiles:
        if name in OWN_METHODS or name.startswith(("10h+", "shuffled_")):
            raise UserError(
                f"evaluate.profiles.{name}: this evaluation has a method of that name; "
                "choose another, such as the other method's own"
            )
    if len(cohort.rows) < 2:
        raise UserError(
            f"evaluate.test_users={config.evaluate.test_users} (0: all) of the data's "
            f"{len(split.user)} test users leaves {len(cohort.rows)}; at least 2 needed"
        )
    if cohort.candidates.shape[1] < config.rewards.choice.num_options:
        raise UserError(
            f"data.eval_negatives={config.data.eval_negatives} must be at least "
            f"rewards.choice.num_options - 1 = {config.rewards.choice.num_options - 1}"
        )
    users = split.user[cohort.rows]
    assert len(np.unique(users)) == len(users), "one test example a user"


def all_scores(
    config: ConfigDict,
    workdir: str,
    mesh: jax.sharding.Mesh,
    log: Log,
    examples: Examples,
    cohort: Cohort,
    profiles: Mapping[str, Sequence[str]],
) -> dict[str, Float[np.ndarray, "U I"]]:
    """Every method's scores of the candidates: method -> one row a user."""
    encoder = sources.load_text_encoder(config, config.encoder, log, workdir, mesh)
    item_table = sources.item_table(encoder, log, workdir)
    query_format = sources.query_format(config, encoder)
    partners = queries.other_users(len(cohort.rows), seed=config.seed)
    texts = queries.query_texts(query_format, cohort.histories, profiles, partners)
    means = mean_item_vectors(cohort, item_table)
    vectors = np.concatenate([means[None], embed_texts(encoder.embed, texts)])
    if not np.isfinite(vectors).all():
        logger.warning("the encoder gave non-finite vectors: they rank last")
    cosines = cosine_scores(vectors, item_table, cohort.candidates)
    by_method = dict(zip(["mean_items", *texts], cosines, strict=True))
    return trivial_scores(cohort, examples.item_counts, seed=config.seed) | by_method


def write_file(path: epath.Path, text: str, *, private: bool = False) -> None:
    """All of `path` or nothing; a private file on disk is for its owner only (0600)."""
    part = path.with_name(path.name + ".part")
    part.write_text("")
    if private and "://" not in os.fspath(part):  # buckets have no file modes
        os.chmod(part, 0o600)
    part.write_text(text)
    part.replace(path)


def run(config: ConfigDict, workdir: str) -> None:
    """Evaluate the profilers of `workdir` on its test users and write what was found.

    Leaves evaluation.json, evaluation.md and evaluation_profiles.jsonl; the same config
    and checkpoints give the same files.
    """
    # --- setup
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    log = sources.load_log(config, workdir)
    examples = sources.load_examples(config, log, workdir)
    limit = config.evaluate.test_users
    cohort = choose_users(examples.test, log.titles, limit=limit)
    check(config, examples.test, cohort)
    user_ids = [log.user_ids[u] for u in examples.test.user[cohort.rows].tolist()]
    others = {
        method: read_profiles(path, user_ids, field=f"evaluate.profiles.{method}")
        for method, path in config.evaluate.profiles.items()
    }

    # --- profiles of the starting and of the trained profiler; then the reader
    generated: dict[str, list[Profile]] = {}
    written_by: dict[str, dict[str, Any]] = {}
    reader = None
    for method, which in PROFILERS.items():
        profiler = sources.load_profiler(config, log, workdir, mesh, which)
        if profiler is None:
            continue
        generated[method] = write_profiles(
            cohort,
            sources.make_generate(
                config,
                profiler,
                mesh,
                temperature=config.evaluate.sampling_temperature,
            ),
            titles=log.titles,
            prompt_format=sources.prompt_format(config, profiler),
        )
        written_by[method] = {"step": profiler.step, "model": profiler.name}
        if reader is None or config.rewards.choice.reader == "policy":
            reader = profiler
    assert reader is not None, "there is always a base profiler"
    options = cohort.candidates[:, : config.rewards.choice.num_options]
    reader_result = reader_accuracy(
        sources.make_choice_scorer(config, reader, mesh),
        profiles=history_profiles(config, cohort),
        options=[[log.titles[i] for i in row] for row in options.tolist()],
    )
    reader_result["model"] = reader.name
    del profiler, reader  # their memory is the encoder's now

    # --- scores, ranks, intervals
    profiles = {m: [p.text for p in written] for m, written in generated.items()}
    profiles |= others
    scores = all_scores(config, workdir, mesh, log, examples, cohort, profiles)
    statistics = {
        method: report.profile_statistics(texts, cohort.histories)
        for method, texts in profiles.items()
    }
    for method, written in generated.items():
        statistics[method]["finished"] = float(np.mean([p.finished for p in written]))
        statistics[method]["tokens"] = float(np.mean([p.num_tokens for p in written]))
    protocol = f"1+{cohort.candidates.shape[1] - 1}"
    result = {
        "dataset": log.name,
        "users": len(cohort.rows),
        "seed": config.seed,
        "resamples": config.evaluate.bootstrap,
        "models": {method: facts["model"] for method, facts in written_by.items()},
        **report.summarise(
            scores,
            others=list(others),
            protocol=protocol,
            resamples=config.evaluate.bootstrap,
            seed=config.seed,
        ),
        "profile_stats": statistics,
        "reader": reader_result,
    }

    # --- files
    shown = [
        report.User(
            recent_titles=cohort.histories[i][-config.prompts.recent_items :],
            next_title=log.titles[int(cohort.candidates[i, 0])],
            profiles={method: profiles[method][i] for method in generated},
        )
        for i in range(min(SHOWN_USERS, config.log.sample_users, len(user_ids)))
    ]
    lines = [
        {
            "user_id": user,
            "profile": profile.text,
            "num_tokens": profile.num_tokens,
            "finished": profile.finished,
            **written_by[method],
            "method": method,
        }
        for method, written in generated.items()
        for user, profile in zip(user_ids, written, strict=True)
    ]
    if jax.process_index() == 0:
        folder = epath.Path(workdir)
        records = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_file(folder / "evaluation_profiles.jsonl", records, private=True)
        write_file(folder / "evaluation.md", report.markdown(result, shown))
        numbers = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
        write_file(folder / "evaluation.json", numbers + "\n")
    closing = report.closing(result, shown)
    logger.info("evaluation on %d test users\n\n%s\n", len(user_ids), closing)
