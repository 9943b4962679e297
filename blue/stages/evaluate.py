"""Evaluation: do the profiles help to find the next item of users never trained on?

Stage `evaluate`. Every method of `methods` turns a test user into a ranking, and every
protocol of `protocols` says among which items the next one is ranked. The first is
BLUE's, https://arxiv.org/abs/2605.06981, section "Evaluation": 99 stored negatives.
Trained profiles are compared with untrained ones, raw history, rankers and profiles
without a model, and other users' profiles. All numbers have intervals over users.
"""

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from blue.data.examples import Split
from blue.data.log import Log
from blue.data.profiles import profile_row, read_profiles
from blue.errors import UserError
from blue.evaluation import cold_start, comparison, methods, panel, report, summary
from blue.evaluation.baselines import template_pieces
from blue.evaluation.cohort import Cohort, choose_cohort, write_profiles
from blue.evaluation.comparison import Space
from blue.evaluation.judge import judge_accuracy
from blue.hub import export
from blue.hub.model import Model
from blue.inference.generate import Profile
from blue.runtime import preemption, watchdog
from blue.runtime.files import write_text
from blue.sources.encoder import load_item_table, load_text_encoder
from blue.sources.judge import make_choice_scorer
from blue.sources.open_run import Run, open_run
from blue.sources.profiler import load_profiler, make_generate
from blue.sources.text import prompt_format_of, query_format_of, templates_of
from blue.text import prompts, queries
from blue.text.rule_profiles import template_profile
from blue.workdir.checkpoints import fingerprint
from blue.workdir.writer import write_curves

logger = logging.getLogger("blue")

TRANSFERRED = ("1+99", "1+99-popularity")  # also ranked by the second encoder
SHOWN_USERS = 3  # in evaluation.md
AGAIN = "nothing of this evaluation is kept"  # of one that is preempted


class Subjects(NamedTuple):
    """The users of the evaluation, and the profiles that others wrote of them."""

    cohort: Cohort
    user_ids: list[str]  # of each row
    short: dict[int, Cohort]  # length of a cut history -> the cohort with these
    brought: dict[str, list[str]]  # method -> one profile a row


class WrittenBy(NamedTuple):
    """What one profiler wrote."""

    profiles: list[Profile]  # one a row of the cohort
    short: dict[int, list[str]]  # length of a cut history -> the texts from these
    step: int
    model: str
    weights: int  # `fingerprint` of the profiler's


def run(config: ConfigDict, workdir: str) -> None:
    """Evaluates the profilers of `workdir` on its test users and writes the results.

    Writes evaluation.json, evaluation.md, evaluation_profiles.jsonl and candidates/.
    The same config and checkpoints give the same files.
    """
    run = open_run(config, workdir)
    subjects = choose_subjects(run)
    watchdog.sign_of_life("evaluate")
    written, judge = write_with_profilers(run, subjects)
    judged = judge_accuracy_of(run, judge, subjects.cohort)
    del judge  # frees its memory for the encoder
    preemption.leave_if_requested(AGAIN)
    texts = {m: [p.text for p in by.profiles] for m, by in written.items()}
    profiles = texts | subjects.brought
    compared, space = compare(run, subjects.cohort, profiles)
    statistics = profile_statistics(run, subjects.cohort, profiles, space, compared)
    for method, by in written.items():
        found = statistics[method]
        found["finished"] = float(np.mean([p.finished for p in by.profiles]))
        found["tokens"] = float(np.mean([p.num_tokens for p in by.profiles]))
    result = {
        "dataset": run.log.name,
        "users": len({*subjects.user_ids}),
        "targets": len(subjects.cohort.rows),
        "seed": config.seed,
        "resamples": config.evaluate.bootstrap,
        "models": {method: by.model for method, by in written.items()},
        **compared,
        "profile_stats": statistics,
        "reader": judged,  # the key since version 0.1.0
    }
    if subjects.short:
        result["cold_start"] = cold_start_curve(run, subjects, written, space)
    write_results(run, subjects, written, result, space)


# --- users


def choose_subjects(run: Run) -> Subjects:
    """The test users. Checks the settings before a model is loaded."""
    config, log, test = run.config, run.log, run.examples.test
    section = config.evaluate
    cohort = choose_cohort(test, log.titles, limit=section.test_users)
    check(config, log, test, cohort)
    user_ids = [log.user_ids[u] for u in cohort.users.tolist()]
    brought = {
        method: read_profiles(path, user_ids, field=f"evaluate.profiles.{method}")
        for method, path in section.profiles.items()
    }
    some, limit = cohort, section.cold_start_users
    if limit:
        some = choose_cohort(test, log.titles, limit=limit)
    short = cold_start.cohorts(some, log.titles, section.cold_start)
    if brought and len({*user_ids}) < len(user_ids):
        logger.warning(
            "evaluate.profiles: the test users have several targets each, and a "
            "profile written from a whole log has seen them: those rows may leak"
        )
    return Subjects(cohort, user_ids, short, brought)


def check(config: ConfigDict, log: Log, split: Split, cohort: Cohort) -> None:
    """Checks the settings against the data. Raises `UserError`."""
    for name in config.evaluate.profiles:
        if methods.is_taken(name):
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


# --- what profilers write, and how good the judge of the multiple choice is


def write_with_profilers(
    run: Run, subjects: Subjects
) -> tuple[dict[str, WrittenBy], Model]:
    """The profiles of every profiler in the table of methods, and the judge's model."""
    config, titles = run.config, run.log.titles
    written: dict[str, WrittenBy] = {}
    judge = None
    for method in methods.METHODS:
        if not method.profiler:
            continue
        preemption.leave_if_requested(AGAIN)
        profiler = load_profiler(run, method.profiler)
        if profiler is None:
            continue
        temperature = config.evaluate.sampling_temperature
        write = functools.partial(
            write_profiles,
            generate=make_generate(config, profiler, run.mesh, temperature=temperature),
            titles=titles,
            prompt_format=prompt_format_of(config, profiler),
        )
        written[method.name] = WrittenBy(
            write(subjects.cohort),
            {k: [p.text for p in write(cut)] for k, cut in subjects.short.items()},
            profiler.step,
            profiler.name,
            fingerprint(profiler.params),
        )
        policy = method.name == methods.TRAINED
        if judge is None or (policy and config.judge.model == "policy"):
            judge = profiler
    assert judge is not None, "there is always a base profiler"
    return written, judge


def judge_accuracy_of(run: Run, judge: Model, cohort: Cohort) -> dict[str, Any]:
    """How often the judge picks the next item, by what it is given about the user."""
    config, titles = run.config, run.log.titles
    options = cohort.candidates[:, : config.rewards.choice.num_options]
    found = judge_accuracy(
        make_choice_scorer(config, judge, run.mesh),
        profiles=history_profiles(config, cohort),
        options=[[titles[i] for i in row] for row in options.tolist()],
    )
    return {**found, "model": judge.name}


def history_profiles(config: ConfigDict, cohort: Cohort) -> list[str]:
    """The recent history in the kind of text that the judge was trained on, one a user.

    Judges that score by likelihood are tiny and were trained on template profiles only.
    """
    templates = templates_of(config)
    profiles = []
    for example_id, titles in zip(cohort.example_ids, cohort.histories, strict=True):
        recent = titles[-config.prompts.recent_items :]
        if config.judge.scoring == "likelihood":
            rng = np.random.default_rng([config.seed, int(example_id)])
            num_items = config.warm_start.profile_items
            profile = template_profile(templates, recent, num_items=num_items, rng=rng)
        else:
            profile = prompts.history_view(templates, recent)
        profiles.append(profile)
    return profiles


# --- ranks, intervals


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


def settings_of(config: ConfigDict) -> methods.Settings:
    """What the config asks of the comparison."""
    return methods.Settings(
        seed=config.seed,
        negatives=config.data.eval_negatives,
        recent_items=config.prompts.recent_items,
        category=config.data.category,
        pseudo_item_template=config.data.pseudo_item_template,
        ease_l2=config.evaluate.ease_l2,
        ease_max_items=config.evaluate.ease_max_items,
    )


def compare(
    run: Run, cohort: Cohort, profiles: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Any], Space]:
    """Ranks by every method under every protocol: the results, and the encoder's space.

    `profiles` has one text a row for each method that provides them.
    """
    section = run.config.evaluate
    resampling = dict(resamples=section.bootstrap, seed=run.config.seed)
    task = methods.Task(run.log, run.examples, cohort, settings_of(run.config))
    texts = comparison.rule_profiles(task) | dict(profiles)
    drawn = comparison.draw_protocols(
        epath.Path(run.workdir) / "candidates",
        task,
        section.protocols,
        write=jax.process_index() == 0,
    )
    without = comparison.rankers_without_encoder(task)
    space = open_space(run, run.config.encoder)
    rankers = [*without, *comparison.rankers_of_space(task, texts, space)]
    ranked, recommended = comparison.rank(
        task, drawn, rankers, section.protocols, run.mesh
    )
    if not ranked:
        raise UserError(
            f"evaluate.protocols={section.protocols}: none of them can be ranked; "
            "1+99-category needs data.category and enough items of each"
        )
    result = summary.summarise(ranked, **resampling)
    result["strata"] = summary.all_strata(
        ranked,
        run.examples.item_counts,
        cohort.split.next_item[cohort.rows],
        list(map(len, cohort.histories)),
        **resampling,
    )
    result["recommended"] = recommended
    if section.transfer.kind:
        second = open_space(run, section.transfer)
        names = [name for name in section.protocols if name in TRANSFERRED]
        rankers = comparison.rankers_of_space(task, texts, second)
        ranked, _ = comparison.rank(task, drawn, rankers, names, run.mesh)
        found = summary.summarise(ranked, **resampling)
        result["transfer"] = {"encoder": second.name, **found}
    return result, space


def profile_statistics(
    run: Run,
    cohort: Cohort,
    profiles: Mapping[str, Sequence[str]],
    space: Space,
    compared: Mapping[str, Any],
) -> dict[str, dict[str, float]]:
    """The quality panel of each method's profiles, re-identification, shuffle drop."""
    next_items = cohort.candidates[:, 0]
    next_titles = [run.log.titles[i] for i in next_items.tolist()]
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
        shuffled = d["b"] == methods.SHUFFLED + d["a"]
        if shuffled and d["protocol"] == protocol and d["metric"] == "ndcg@10":
            if d["a"] in found:
                found[d["a"]]["shuffle_drop"] = d["mean"]
    return found


def cold_start_curve(
    run: Run, subjects: Subjects, written: Mapping[str, WrittenBy], space: Space
) -> list[dict[str, Any]]:
    """One point for each length of the cut histories; also a curve on TensorBoard."""
    texts = {
        events: {method: by.short[events] for method, by in written.items()}
        for events in subjects.short
    }
    curve = cold_start.curve(
        subjects.short,
        texts,
        embed=space.embed,
        query_format=space.query_format,
        item_table=space.item_table,
        resamples=run.config.evaluate.bootstrap,
        seed=run.config.seed,
    )
    if run.config.log.tensorboard:
        write_curves(run.workdir, "evaluate", cold_start.scalars(curve))
    return curve


# --- files


def profile_lines(
    run: Run, subjects: Subjects, written: Mapping[str, WrittenBy]
) -> list[dict[str, Any]]:
    """The rows of evaluation_profiles.jsonl: as in profiles.jsonl, with the method. The
    target is added where users have several.
    """
    several = len({*subjects.user_ids}) < len(subjects.user_ids)
    targets = [
        {"target": run.log.item_ids[item]} if several else {}
        for item in subjects.cohort.candidates[:, 0].tolist()
    ]
    return [
        profile_row(user_id, *profile, step=by.step, model=by.model)
        | {"method": method, **target}
        for method, by in written.items()
        for user_id, target, profile in zip(
            subjects.user_ids, targets, by.profiles, strict=True
        )
    ]


def shown_users(
    run: Run, subjects: Subjects, written: Mapping[str, WrittenBy]
) -> list[report.User]:
    """The few users whose texts evaluation.md shows."""
    cohort, config = subjects.cohort, run.config
    return [
        report.User(
            recent_titles=cohort.histories[i][-config.prompts.recent_items :],
            next_title=run.log.titles[int(cohort.candidates[i, 0])],
            profiles={method: by.profiles[i].text for method, by in written.items()},
        )
        for i in range(min(SHOWN_USERS, config.log.sample_users, len(cohort.rows)))
    ]


def write_results(
    run: Run,
    subjects: Subjects,
    written: Mapping[str, WrittenBy],
    result: Mapping[str, Any],
    space: Space,
) -> None:
    """Writes the files and the cards of the exports; logs what a terminal shows."""
    shown = shown_users(run, subjects, written)
    if jax.process_index() == 0:
        folder = epath.Path(run.workdir)
        rows = profile_lines(run, subjects, written)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(folder / "evaluation_profiles.jsonl", lines, private=True)
        page = report.markdown(result, shown)  # with texts of a few users
        write_text(folder / "evaluation.md", page, private=True)
        numbers = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
        write_text(folder / "evaluation.json", numbers + "\n")
        evaluated = {by.weights for by in written.values()}
        if space.weights is not None:
            evaluated.add(space.weights)
        export.add_evaluation(run.workdir, report.card_section(result), evaluated)
    closing = report.closing(result, shown)
    logger.info("evaluation on %d test users\n\n%s\n", result["users"], closing)
