"""Evaluation: do the profiles help to find the next item of users never trained on?

Stage `evaluate`. Every method turns a test user into one query; the encoder ranks the
next item, among stored negatives (BLUE, https://arxiv.org/abs/2605.06981, section
"Evaluation": 99 of them) and under the other protocols of `protocols`. Beside the
trained profiles stand the untrained ones, raw history, rankers and profiles without a
model, and other users' profiles, all with intervals over users.
Training stages call `validation_ndcg`.
"""

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from blue.data.examples import Split
from blue.data.log import Log
from blue.data.profiles import read_profiles
from blue.errors import UserError
from blue.evaluation import cold_start, comparison, panel, report, summary
from blue.evaluation.baselines import template_pieces
from blue.evaluation.cohort import Cohort, choose_users, write_profiles
from blue.evaluation.comparison import Space
from blue.evaluation.judge import judge_accuracy
from blue.hub import export
from blue.inference.generate import Profile
from blue.runtime import preemption, watchdog
from blue.runtime.files import write_text
from blue.sources.encoder import load_item_table, load_text_encoder
from blue.sources.judge import make_choice_scorer
from blue.sources.profiler import load_profiler, make_generate
from blue.sources.run import Run, open_run
from blue.sources.text import prompt_format_of, query_format_of, templates_of
from blue.text import prompts, queries
from blue.text.rule_profiles import template_profile
from blue.workdir.checkpoints import fingerprint
from blue.workdir.writer import write_curves

logger = logging.getLogger("blue")

PROFILERS = {"base": "base", "blue": "trained"}  # method -> which profiler writes
OWN_METHODS = (
    *("random", "popular", "ease", "mean_items", "mean_recent"),
    *("empty", "constant", "all_history", "10_history", "pseudo_item"),
    *PROFILERS,
)
TRANSFERRED = ("1+99", "1+99-popularity")  # also ranked by the second encoder
SHOWN_USERS = 3  # in evaluation.md
AGAIN = "nothing of this evaluation is kept"  # of one that is preempted


def open_space(run: Run, section: ConfigDict) -> Space:
    """The encoder of `section`: config.encoder, or config.evaluate.transfer."""
    encoder = load_text_encoder(run, section)
    return Space(
        name=encoder.name,
        embed=encoder.embed,
        query_format=query_format_of(run.config, encoder),
        item_table=load_item_table(encoder, run.log, run.workdir),
        weights=encoder.weights,
    )


def history_profiles(config: ConfigDict, cohort: Cohort) -> list[str]:
    """The recent history in the reader's own kind of text, one a user.

    Readers that score by likelihood are tiny and have read template profiles only.
    """
    templates = templates_of(config)
    profiles = []
    for example_id, titles in zip(cohort.example_ids, cohort.histories, strict=True):
        recent = titles[-config.prompts.recent_items :]
        if config.rewards.choice.scoring == "likelihood":
            rng = np.random.default_rng([config.seed, int(example_id)])
            num_items = config.warm_start.profile_items
            profile = template_profile(templates, recent, num_items=num_items, rng=rng)
        else:
            profile = prompts.history_view(templates, recent)
        profiles.append(profile)
    return profiles


# --- the stage


def check(config: ConfigDict, log: Log, split: Split, cohort: Cohort) -> None:
    """What a user can get wrong, told before a model is loaded."""
    for name in config.evaluate.profiles:
        prefixed = name.startswith(("10h+", "shuffled_")) or name.endswith("_centred")
        if name in OWN_METHODS or prefixed:
            raise UserError(
                f"evaluate.profiles.{name}: this evaluation has a method of that name; "
                "choose another, such as the other method's own"
            )
    if (chosen := len(np.unique(cohort.users))) < 2:
        raise UserError(
            f"evaluate.test_users={config.evaluate.test_users} (0: all) of the data's "
            f"{len(np.unique(split.user))} test users leaves {chosen}; at least 2 "
            "needed, and data.test_users takes at most a fifth of the log's users"
        )
    if cohort.candidates.shape[1] < config.rewards.choice.num_options:
        raise UserError(
            f"data.eval_negatives={config.data.eval_negatives} must be at least "
            f"rewards.choice.num_options - 1 = {config.rewards.choice.num_options - 1}"
        )
    if config.data.category not in ("", *log.columns):
        raise UserError(
            f"data.category={config.data.category!r} is no item column; known: "
            f"{', '.join(log.columns) or 'none'}"
        )
    template = config.data.pseudo_item_template
    template_pieces("data.pseudo_item_template", template, log.columns)


def compare(
    run: Run, cohort: Cohort, profiles: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Any], Space]:
    """Rank every method under every protocol; the numbers, and the encoder's space.

    `profiles` has one text a row for each method that writes them.
    """
    config, log, examples = run.config, run.log, run.examples
    section, num = config.evaluate, config.data.eval_negatives
    settings = dict(resamples=section.bootstrap, seed=config.seed)
    recent, others = config.prompts.recent_items, list(section.profiles)
    template = config.data.pseudo_item_template
    rules = comparison.rule_profiles(
        log, examples, cohort, recent=recent, template=template
    )
    drawn = comparison.draw(
        epath.Path(run.workdir) / "candidates",
        examples,
        section.protocols,
        category=log.columns.get(config.data.category),
        seed=config.seed,
        num=num,
        write=jax.process_index() == 0,
    )
    without = comparison.rankers_without_encoder(
        log,
        examples,
        cohort,
        seed=config.seed,
        ease_l2=section.ease_l2,
        ease_max_items=section.ease_max_items,
    )
    rankers_of = lambda space: comparison.rankers_of_space(
        examples, cohort, rules | dict(profiles), space, seed=config.seed, recent=recent
    )
    space = open_space(run, config.encoder)
    ranked, recommended = comparison.rank(
        examples,
        cohort,
        drawn,
        [*without, *rankers_of(space)],
        section.protocols,
        run.mesh,
        num=num,
    )
    if not ranked:
        raise UserError(
            f"evaluate.protocols={section.protocols}: none of them can be ranked; "
            "1+99-category needs data.category and enough items of each"
        )
    result = summary.summarise(ranked, others=others, **settings)
    result["strata"] = summary.all_strata(
        ranked,
        examples.item_counts,
        cohort.split.next_item[cohort.rows],
        list(map(len, cohort.histories)),
        **settings,
    )
    result["recommended"] = recommended
    if section.transfer.kind:
        second = open_space(run, section.transfer)
        names = [name for name in section.protocols if name in TRANSFERRED]
        ranked, _ = comparison.rank(
            examples, cohort, drawn, rankers_of(second), names, run.mesh, num=num
        )
        found = summary.summarise(ranked, others=others, **settings)
        result["transfer"] = {"encoder": second.name, **found}
    return result, space


def profile_statistics(
    cohort: Cohort,
    profiles: Mapping[str, Sequence[str]],
    titles: list[str],
    space: Space,
    compared: Mapping[str, Any],
) -> dict[str, dict[str, float]]:
    """The quality panel of each method's profiles, re-identification, shuffle drop."""
    next_items = cohort.candidates[:, 0]
    next_titles = [titles[i] for i in next_items.tolist()]
    item_vectors = np.asarray(space.item_table[next_items], np.float32)
    found = {}
    for method, texts in profiles.items():
        stats = panel.statistics(texts, cohort.histories, next_titles, cohort.users)
        asked = [queries.profile_query(space.query_format, text) for text in texts]
        hits = panel.reid_at_1(space.embed(asked), item_vectors, cohort.users)
        stats["reid@1"] = float(panel.user_means(hits, cohort.users).mean())
        found[method] = stats
    protocol = next(iter(compared["protocols"]))
    for d in compared["differences"]:
        shuffled = d["b"] == f"shuffled_{d['a']}"
        if shuffled and d["protocol"] == protocol and d["metric"] == "ndcg@10":
            if d["a"] in found:
                found[d["a"]]["shuffle_drop"] = d["mean"]
    return found


def run(config: ConfigDict, workdir: str) -> None:
    """Evaluate the profilers of `workdir` on its test users and write what was found.

    Leaves evaluation.json, evaluation.md, evaluation_profiles.jsonl and candidates/;
    the same config and checkpoints give the same files.
    """
    # --- setup
    run = open_run(config, workdir)
    mesh, log, examples = run.mesh, run.log, run.examples
    limit = config.evaluate.test_users
    cohort = choose_users(examples.test, log.titles, limit=limit)
    check(config, log, examples.test, cohort)
    user_ids = [log.user_ids[u] for u in cohort.users.tolist()]
    others = {
        method: read_profiles(path, user_ids, field=f"evaluate.profiles.{method}")
        for method, path in config.evaluate.profiles.items()
    }
    lengths, limit = config.evaluate.cold_start, config.evaluate.cold_start_users
    some = choose_users(examples.test, log.titles, limit=limit) if limit else cohort
    short = cold_start.cohorts(some, log.titles, lengths)

    if others and len({*user_ids}) < len(user_ids):
        logger.warning(
            "evaluate.profiles: the test users have several targets each, and a "
            "profile written from a whole log has seen them: those rows may leak"
        )

    # --- profiles of the starting and of the trained profiler; then the reader
    generated: dict[str, list[Profile]] = {}
    short_profiles: dict[int, dict[str, list[str]]] = {events: {} for events in short}
    written_by: dict[str, dict[str, Any]] = {}
    evaluated: set[int] = set()  # weights
    reader = None
    watchdog.beat("evaluate")
    for method, which in PROFILERS.items():
        preemption.leave_if_requested(AGAIN)
        profiler = load_profiler(run, which)
        if profiler is None:
            continue
        temperature = config.evaluate.sampling_temperature
        write = functools.partial(
            write_profiles,
            generate=make_generate(config, profiler, mesh, temperature=temperature),
            titles=log.titles,
            prompt_format=prompt_format_of(config, profiler),
        )
        generated[method] = write(cohort)
        for events, cut in short.items():
            short_profiles[events][method] = [p.text for p in write(cut)]
        written_by[method] = {"step": profiler.step, "model": profiler.name}
        evaluated.add(fingerprint(profiler.params))
        if reader is None or config.rewards.choice.reader == "policy":
            reader = profiler
    assert reader is not None, "there is always a base profiler"
    options = cohort.candidates[:, : config.rewards.choice.num_options]
    reader_result = judge_accuracy(
        make_choice_scorer(config, reader, mesh),
        profiles=history_profiles(config, cohort),
        options=[[log.titles[i] for i in row] for row in options.tolist()],
    )
    reader_result["model"] = reader.name
    del profiler, reader, write  # their memory is the encoder's now

    # --- ranks, intervals
    preemption.leave_if_requested(AGAIN)
    profiles = {m: [p.text for p in written] for m, written in generated.items()}
    profiles |= others
    compared, space = compare(run, cohort, profiles)
    statistics = profile_statistics(cohort, profiles, log.titles, space, compared)
    for method, written in generated.items():
        statistics[method]["finished"] = float(np.mean([p.finished for p in written]))
        statistics[method]["tokens"] = float(np.mean([p.num_tokens for p in written]))
    result = {
        "dataset": log.name,
        "users": len({*user_ids}),
        "targets": len(cohort.rows),
        "seed": config.seed,
        "resamples": config.evaluate.bootstrap,
        "models": {method: facts["model"] for method, facts in written_by.items()},
        **compared,
        "profile_stats": statistics,
        "reader": reader_result,
    }
    if short:
        result["cold_start"] = cold_start.curve(
            short,
            short_profiles,
            embed=space.embed,
            query_format=space.query_format,
            item_table=space.item_table,
            resamples=config.evaluate.bootstrap,
            seed=config.seed,
        )

        if config.log.tensorboard:
            write_curves(workdir, "evaluate", cold_start.scalars(result["cold_start"]))

    # --- files
    shown = [
        report.User(
            recent_titles=cohort.histories[i][-config.prompts.recent_items :],
            next_title=log.titles[int(cohort.candidates[i, 0])],
            profiles={method: profiles[method][i] for method in generated},
        )
        for i in range(min(SHOWN_USERS, config.log.sample_users, len(user_ids)))
    ]
    several = len({*user_ids}) < len(user_ids)  # then the user alone is ambiguous
    targets = [
        {"target": log.item_ids[item]} if several else {}
        for item in cohort.candidates[:, 0].tolist()
    ]
    lines = [
        {
            "user_id": user,
            "profile": profile.text,
            "num_tokens": profile.num_tokens,
            "finished": profile.finished,
            **written_by[method],
            "method": method,
            **target,
        }
        for method, written in generated.items()
        for user, target, profile in zip(user_ids, targets, written, strict=True)
    ]
    if jax.process_index() == 0:
        folder = epath.Path(workdir)
        records = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text(folder / "evaluation_profiles.jsonl", records, private=True)
        write_text(folder / "evaluation.md", report.markdown(result, shown))
        numbers = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
        write_text(folder / "evaluation.json", numbers + "\n")
        if space.weights is not None:
            evaluated.add(space.weights)
        export.add_evaluation(workdir, report.card_section(result), evaluated)
    closing = report.closing(result, shown)
    logger.info("evaluation on %d test users\n\n%s\n", result["users"], closing)
