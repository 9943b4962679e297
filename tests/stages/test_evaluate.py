"""The evaluation stage over a real little world, with models that are rules.

The "encoder" is a bag of words, as is the "judge"; the "profilers" write words of the
history (trained) or of the catalogue (base).
"""

import hashlib
import itertools
import json
import logging
import stat

import numpy as np
import pytest

from blue.data import synthetic
from blue.errors import UserError
from blue.evaluation import baselines, methods
from blue.evaluation.cohort import choose_cohort
from blue.hub.model import Model
from blue.inference.embed import TextEncoder
from blue.sources.open_run import Run, mesh_of
from blue.stages import evaluate
from blue.text import queries
from blue.text.rule_profiles import profile_word_stats
from blue.text.tokenizer import train_tokenizer
from blue.text.words import folded_words
from configs import base as base_config
from tests.helpers.evaluated_world import (
    WORLD,
    choose,
    embed,
    make_generate,
    num_tokens,
    prepare,
)

UNTRAINED = [
    *("random", "popular", "ease", "mean_items", "mean_recent", "empty"),
    *("all_history", "10_history", "constant", "base", "10h+base", "shuffled_base"),
]
CENTRED = ["mean_items_centred", "mean_recent_centred", "base_centred"]
METHODS = [
    *UNTRAINED,
    *("blue", "10h+blue", "shuffled_blue", "10h+shuffled_blue"),
    *(*CENTRED, "blue_centred"),
]
PROTOCOLS = [
    *("1+99", "1+99-popularity", "full"),
    *("expected-1+99", "expected-1+99-popularity"),
]
REQUIRED_DIFFERENCES = [
    *(("blue", "base"), ("blue", "shuffled_blue"), ("base", "shuffled_base")),
    *(("base", "empty"), ("10h+blue", "10h+base"), ("10h+blue", "10_history")),
    ("10h+blue", "10h+shuffled_blue"),
]


def first_letters(texts):
    """Another encoder: it reads two letters of each word."""
    return embed([" ".join(w[:2] for w in folded_words(text)) for text in texts])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    log, _ = synthetic.make(0, synthetic.World(**WORLD))
    examples = prepare(log, tmp_path_factory.mktemp("examples"))
    return log, examples, train_tokenizer(log.titles, vocab_size=640)


def run_stage(world, workdir, *, trained=True, **fields):
    """The result of evaluate.run with rules in place of models; `fields` of config."""
    log, examples, tokenizer = world
    config = base_config.get_config("tiny")
    config.evaluate.test_users = 0
    config.evaluate.bootstrap = 500
    config.evaluate.protocols = ("1+99",)
    config.max_prompt_tokens = 400
    config.update_from_flattened_dict(fields)

    def load_profiler(run, which):
        if which == "trained" and not trained:
            return None
        return Model(None, {}, tokenizer, which, step=7 * (which == "trained"))

    def load_text_encoder(run, section):
        rule, name = (embed, "words")
        if section is not run.config.encoder:
            rule, name = (first_letters, "first letters")
        start = lambda texts: lambda: rule(texts)
        return TextEncoder(rule, start, num_tokens(tokenizer), 64, 64, name, name)

    def open_run(config, workdir):
        run = Run(config, workdir, mesh_of(config), log)
        run.__dict__["examples"] = examples
        return run

    rules = dict(
        open_run=open_run,
        load_profiler=load_profiler,
        load_text_encoder=load_text_encoder,
        load_item_table=lambda encoder, log, workdir: encoder.embed(log.texts),
        make_generate=lambda config, profiler, mesh, *, temperature: make_generate(
            log, examples, tokenizer, profiler.name
        ),
        make_choice_scorer=lambda config, judge, mesh: choose,
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, rule in rules.items():
            patch.setattr(evaluate, name, rule)
        evaluate.run(config, str(workdir))
    return json.loads((workdir / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """(result, workdir) of a run that the tests only read."""
    workdir = tmp_path_factory.mktemp("finished")
    more = {"prompts.recent_items": 16, "warm_start.profile_items": 12}
    more["evaluate.protocols"] = tuple(PROTOCOLS)
    for role, weights in (("profiler", 0), ("encoder", 5)):  # 0: of no parameters
        directory = workdir / "export" / role
        directory.mkdir(parents=True)
        facts = {**FACTS, "role": role, "weights": weights}
        (directory / "training_config.json").write_text(json.dumps(facts))
    return run_stage(world, workdir, **more), workdir


FACTS = {
    "stage": "profiler", "step": 7, "validation": None, "model": "x", "checkpoint": "",
    "commit": "", "base_model": "", "random_weights": True, "licence": {},
    "notices": [], "data": "a *log*", "fingerprint": "f", "max_completion_tokens": 9,
    "version": "1", "git_commit": None, "config": {"prompts": {"style": "short"}},
}  # fmt: skip


def test_the_card_of_the_model_that_was_evaluated_says_so(finished):
    result, workdir = finished
    page = (workdir / "export/profiler/README.md").read_text()
    users = result["users"]
    assert f"{users} test users of synthetic, never trained on; protocol 1+99" in page
    low, high = (
        result["methods"]["blue"]["1+99"]["ndcg@10"][k] for k in ("low", "high")
    )
    assert f"[{low:.3f}, {high:.3f}]" in page and "| blue - base | +" in page
    assert "a &#42;log&#42;" in page and "not evaluated" not in page.lower()
    assert not (workdir / "export/encoder/README.md").exists()  # other weights


def find(result, a, b, metric="ndcg@10", protocol="1+99"):
    wanted = {"a": a, "b": b, "metric": metric, "protocol": protocol}
    (found,) = (d for d in result["differences"] if wanted.items() <= d.items())
    return found


def test_evaluation_json_has_the_promised_shape(finished, world):
    result, _ = finished
    assert result["dataset"] == "synthetic" and result["seed"] == 0
    assert result["users"] == len(world[1].test.user)
    assert list(result["methods"]) == METHODS
    for protocols in result["methods"].values():
        assert list(protocols) == PROTOCOLS  # no item column names a category here
        for by_metric in protocols.values():
            assert set(by_metric) == {"ndcg@10", "recall@10", "mrr"}
            for values in by_metric.values():
                assert set(values) == {"mean", "low", "high"}
                assert 0 <= values["low"] <= values["mean"] <= values["high"] <= 1
    for protocol, metric in itertools.product(PROTOCOLS, ("ndcg@10", "mrr")):
        for a, b in REQUIRED_DIFFERENCES:
            d = find(result, a, b, metric, protocol)
            means = [result["methods"][m][protocol][metric]["mean"] for m in (a, b)]
            assert d["mean"] == pytest.approx(means[0] - means[1])
            assert d["low"] <= d["mean"] <= d["high"]
            assert d["high"] - d["low"] == pytest.approx(4 * d["mdd"] / 2.8, rel=0.2)
    facts = result["protocols"]["1+99"]
    assert facts["candidates"] == 100 and facts["left_out"] == 0
    assert facts["users"] == facts["targets"] == 48
    assert result["protocols"]["1+99"]["chance"]["ndcg@10"] == pytest.approx(
        0.0454, abs=5e-5
    )
    assert result["profile_stats"]["blue"]["finished"] == 1.0
    assert result["profile_stats"]["base"]["finished"] == 0.0
    in_history = [result["profile_stats"][m]["in_history"] for m in ("base", "blue")]
    assert in_history[0] < 0.9 < in_history[1] == 1.0
    assert result["ties"]["1+99"]["random"] == 0.0


def test_evaluation_finds_what_was_built_in(finished):
    result, _ = finished
    ndcg = {m: v["1+99"]["ndcg@10"] for m, v in result["methods"].items()}
    assert find(result, "blue", "base")["low"] > 0
    assert find(result, "blue", "shuffled_blue")["low"] > 0
    assert ndcg["all_history"]["low"] > 3 * 0.0454
    for method in ("random", "empty", "shuffled_base"):
        assert ndcg[method]["low"] < 0.08  # chance is .045
    assert result["reader"]["low"] > result["reader"]["chance"] == 0.25
    assert result["reader"]["note"] == ""


def test_profiles_file_is_private_and_complete(finished, world):
    path = finished[1] / "evaluation_profiles.jsonl"
    for private in (path, finished[1] / "evaluation.md"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    log, examples, _ = world
    users = [log.user_ids[u] for u in examples.test.user]
    for method, which, step in (("base", "base", 0), ("blue", "trained", 7)):
        own = [row for row in rows if row["method"] == method]
        assert [row["user_id"] for row in own] == users
        assert {row["step"] for row in own} == {step}
        assert {row["model"] for row in own} == {which}
        assert all(row["finished"] == (method == "blue") for row in own)
        assert all(row["num_tokens"] == len(row["profile"].split()) for row in own)
    keys = {"user_id", "profile", "num_tokens", "finished", "step", "model", "method"}
    assert all(set(row) == keys for row in rows) and len(rows) == 2 * len(users)


def test_page_and_printed_table(world, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="blue"):
        result = run_stage(world, tmp_path, **{"log.sample_users": 2})
    page = (tmp_path / "evaluation.md").read_text()
    for method in METHODS:
        assert f"\n| {method} |" in page
        assert method in caplog.text
    assert f"{result['methods']['blue']['1+99']['mrr']['mean']:.3f}" in caplog.text
    assert "On NDCG@10, blue " in page and "On NDCG@10, 10h+blue " in page
    assert "picks the next item with accuracy" in page
    assert "### User 2" in page and "### User 3" not in page
    assert page.count("Profile, base:") == page.count("Profile, blue:") == 2


def test_no_text_of_users_where_the_config_asks_for_none(world, tmp_path):
    run_stage(world, tmp_path, **{"log.sample_users": 0, "evaluate.test_users": 4})
    assert "### User" not in (tmp_path / "evaluation.md").read_text()


def test_same_config_gives_the_same_bytes(world, tmp_path):
    names = ("evaluation.json", "evaluation.md", "evaluation_profiles.jsonl")
    few = {"evaluate.test_users": 12}
    run_stage(world, tmp_path, **few)
    first = [(tmp_path / name).read_bytes() for name in names]
    run_stage(world, tmp_path, **few)  # over the files of the first run
    assert first == [(tmp_path / name).read_bytes() for name in names]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["candidates", *sorted(names)]
    run_stage(world, tmp_path, seed=1, **few)
    assert first[0] != (tmp_path / names[0]).read_bytes()


def test_without_a_trained_profiler_only_base_is_evaluated(world, tmp_path):
    result = run_stage(world, tmp_path, trained=False)
    assert list(result["methods"]) == [*UNTRAINED, *CENTRED]
    assert result["models"] == {"base": "base"}
    assert result["reader"]["model"] == "base"
    assert find(result, "base", "popular") and find(result, "10h+base", "10_history")
    assert "On NDCG@10, base " in (tmp_path / "evaluation.md").read_text()


def test_judge_is_the_one_the_config_rewards_with(world, tmp_path):
    few = {"evaluate.test_users": 12}
    policy = few | {"judge.model": "policy"}
    assert run_stage(world, tmp_path, **policy)["reader"]["model"] == "trained"
    frozen = few | {"judge.model": "reference"}
    assert run_stage(world, tmp_path, **frozen)["reader"]["model"] == "base"


def test_other_methods_profiles_come_from_files(world, tmp_path):
    log, examples, _ = world
    path = tmp_path / "rlpf.jsonl"
    users = [log.user_ids[u] for u in examples.test.user]
    targets = [log.titles[i] for i in examples.test.next_item]
    with path.open("w") as file:
        for user, title in reversed(list(zip(users, targets, strict=True))):
            file.write(
                json.dumps({"user_id": user, "profile": f"likes {title}"}) + "\n"
            )
    other = {"evaluate.profiles": {"oracle": str(path)}}
    result = run_stage(world, tmp_path, **other)
    assert sorted(result["methods"]) == sorted([*METHODS, "oracle", "10h+oracle"])
    assert result["methods"]["oracle"]["1+99"]["recall@10"]["mean"] > 0.95
    assert find(result, "blue", "oracle")["high"] < 0
    assert find(result, "10h+oracle", "10h+base")["low"] > 0
    assert "finished" not in result["profile_stats"]["oracle"]
    rows = (tmp_path / "evaluation_profiles.jsonl").read_text().splitlines()
    assert {json.loads(row)["method"] for row in rows} == {"base", "blue"}

    path.write_text(path.read_text().split("\n", 1)[1])  # one user goes
    with pytest.raises(UserError, match=f"oracle=.*rlpf.jsonl.*{users[-1]}"):
        run_stage(world, tmp_path, **other)


def test_a_method_is_added_by_a_row(world, tmp_path, monkeypatch):
    """A ranker, and profiles by rule: differences, tables and the panel follow."""
    newest = lambda given: [titles[-1] for titles in given.cohort.histories]
    shelf = lambda given: baselines.popularity(given.examples.item_counts % 7)
    rows = (
        methods.Method("newest", profile=newest, shuffled=("",), group=methods.RIVAL),
        methods.Method("shelf", ranker=shelf, group=methods.CONTROL, key=True),
        methods.Method("nothing", profile=lambda given: None),
    )
    monkeypatch.setattr(methods, "METHODS", (*methods.METHODS, *rows))
    result = run_stage(world, tmp_path, **{"evaluate.test_users": 12})
    added = {"newest", "10h+newest", "shuffled_newest", "shelf"}
    assert set(result["methods"]) == {*METHODS, *added}
    assert find(result, "newest", "shuffled_newest") and find(result, "blue", "shelf")
    assert find(result, "newest", "base") and find(result, "10h+blue", "10h+newest")
    page = (tmp_path / "evaluation.md").read_text()
    assert "| blue - shelf | " in page and "| shuffled_newest | " in page


@pytest.mark.parametrize("name", ["base", "ease", "10h+x", "shuffled_x", "x_centred"])
def test_other_methods_may_not_take_our_names(world, tmp_path, name):
    with pytest.raises(
        UserError, match=f"evaluate.profiles.{name}".replace("+", r"\+")
    ):
        run_stage(world, tmp_path, **{"evaluate.profiles": {name: "nowhere"}})


def test_all_of_the_evaluation_on_several_targets_a_user(world, tmp_path):
    """Rolling targets, categories, pseudo items, a second encoder, the cold start."""
    log, _, tokenizer = world
    kind = [title.split()[-1] for title in log.titles]
    group = ["few" if i < 60 else "many" for i in range(300)]
    columns = {"kind": kind, "group": group, "year": ["1999", "2004", ""] * 100}
    log = log._replace(columns=columns)
    rolling = dict(window_policy="rolling", rolling_targets=3, embargo_items=2)
    examples = prepare(log, tmp_path / "examples", **rolling, test_users=20)
    assert len(examples.test.user) > 2 * len(np.unique(examples.test.user))
    result = run_stage(
        (log, examples, tokenizer),
        tmp_path,
        **{
            "data.category": "group",
            "evaluate.protocols": base_config.get_config().evaluate.protocols,
            "data.pseudo_item_template": "{kind} ({year})",
            "evaluate.transfer.kind": "function",
            "evaluate.cold_start": (0, 2, 5),
            "evaluate.bootstrap": 100,
        },
    )
    users, targets = len(np.unique(examples.test.user)), len(examples.test.user)
    assert (result["users"], result["targets"]) == (users, targets)
    facts = result["protocols"]
    assert list(facts) == [*PROTOCOLS[:2], "1+99-category", *PROTOCOLS[2:]]
    category = facts["1+99-category"]
    assert category["targets"] + category["left_out"] == targets
    assert 0 < category["left_out"] < targets
    for protocol in ("1+99", "1+99-popularity", "1+99-category"):
        path = tmp_path / "candidates" / f"{protocol}.npz"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert facts[protocol]["candidates_sha256"] == digest
    assert facts["full"]["candidates"] < 300
    rows = {"pseudo_item", "10h+pseudo_item", "shuffled_pseudo_item"}
    assert rows <= set(result["methods"])
    pseudo = find(result, "pseudo_item", "shuffled_pseudo_item")
    assert pseudo["mdd"] > 0
    ndcg = {m: v["1+99"]["ndcg@10"]["mean"] for m, v in result["methods"].items()}
    assert ndcg["pseudo_item"] > ndcg["shuffled_pseudo_item"]

    transfer = result["transfer"]
    assert transfer["encoder"] == "first letters"
    assert list(transfer["protocols"]) == PROTOCOLS[:2]
    assert "popular" not in transfer["methods"] and "blue" in transfer["methods"]
    same = find(transfer, "blue", "base")
    assert same["mean"] != find(result, "blue", "base")["mean"]
    digests = [
        part["protocols"]["1+99"]["candidates_sha256"] for part in (result, transfer)
    ]
    assert digests[0] == digests[1]

    curve = result["cold_start"]
    assert [point["events"] for point in curve] == [0, 2, 5]
    assert curve[0]["targets"] == targets >= curve[2]["targets"]
    for point in curve:
        assert set(point["methods"]) == {
            *("10_history", "base", "10h+base", "blue", "10h+blue"),
        }
    known = [point["methods"]["blue"]["ndcg@10"]["mean"] for point in curve]
    assert known[0] < 0.1 < known[2]  # without a history there is nothing to write

    strata = result["strata"]
    assert set(strata["popularity"]) == set(facts)
    parts = strata["popularity"]["1+99"]
    assert sum(part["targets"] for part in parts.values()) == targets
    assert list(strata["history_length"]) == ["1+99"]
    popular, random = (result["recommended"][m] for m in ("popular", "random"))
    assert popular["log_popularity"] > random["log_popularity"]
    assert popular["gini"] > random["gini"] > 0
    assert popular["coverage"] < random["coverage"] <= 1
    lines = (tmp_path / "evaluation_profiles.jsonl").read_text().splitlines()
    keys = {(r["user_id"], r["target"], r["method"]) for r in map(json.loads, lines)}
    assert len(keys) == len(lines) == 2 * targets
    page = (tmp_path / "evaluation.md").read_text()
    for heading in ("Cold start", "What is recommended", "1+99-category"):
        assert f"\n## {heading}" in page


def test_exact_expectation_is_near_the_drawn_protocol(finished):
    result, _ = finished
    for protocol in ("1+99", "1+99-popularity"):
        for method in ("all_history", "blue", "ease"):
            of_method = result["methods"][method]
            drawn = of_method[protocol]["ndcg@10"]
            exact = of_method[f"expected-{protocol}"]["ndcg@10"]["mean"]
            assert drawn["low"] - 0.02 < exact < drawn["high"] + 0.02


def test_mistakes_about_columns_and_protocols_are_told_in_one_line(world, tmp_path):
    for fields, says in (
        ({"data.category": "shelf"}, "data.category='shelf' is no item column; known:"),
        ({"data.pseudo_item_template": "{shelf}"}, "{shelf} is no item column"),
        ({"evaluate.protocols": ("1+99-category",)}, "none of them can be ranked"),
    ):
        with pytest.raises(UserError) as error:
            run_stage(world, tmp_path, **fields)
        assert says in str(error.value) and "\n" not in str(error.value)


def test_no_test_users_is_one_line(world, tmp_path):
    log, examples, tokenizer = world
    nobody = examples.test._replace(
        user=examples.test.user[:0], next_item=examples.test.next_item[:0]
    )
    with pytest.raises(UserError, match="of the data's 0 test users leaves 0"):
        run_stage((log, examples._replace(test=nobody), tokenizer), tmp_path)


def test_too_few_users_or_negatives_stop_before_models_load(world, tmp_path):
    with pytest.raises(UserError, match="evaluate.test_users=1 .*at least 2"):
        run_stage(world, tmp_path, **{"evaluate.test_users": 1})
    with pytest.raises(UserError, match="num_options - 1 = 100"):
        run_stage(world, tmp_path, **{"rewards.choice.num_options": 101})


def test_chosen_users_are_spread_evenly(world):
    log, examples, _ = world
    split = examples.test
    everyone = choose_cohort(split, log.titles, limit=0)
    assert everyone.rows.tolist() == list(range(len(split.user)))
    few = choose_cohort(split, log.titles, limit=4)
    assert np.diff(few.rows).tolist() == [len(split.user) // 4] * 3
    assert (few.candidates[:, 0] == split.next_item[few.rows]).all()
    assert (few.candidates[:, 1:] == split.negatives[few.rows]).all()
    assert few.histories[1] == everyone.histories[few.rows[1]]
    more = choose_cohort(split, log.titles, limit=10**6)
    assert len(more.rows) == len(split.user)


def test_equal_texts_are_embedded_once():
    calls = []

    def counting(texts):
        calls.append(list(texts))
        return embed(texts)

    vectors = queries.embed_texts(counting, {"a": ["x", "y"], "b": ["y", "x"]})
    assert calls == [["x", "y"]]
    np.testing.assert_array_equal(vectors[0], vectors[1, ::-1])


def test_judge_reads_the_kind_of_text_it_knows(world):
    log, examples, _ = world
    cohort = choose_cohort(examples.test, log.titles, limit=3)
    config = base_config.get_config("tiny")
    config.judge.scoring = "likelihood"
    written = evaluate.history_profiles(config, cohort)
    assert all(text.startswith("The user likes ") for text in written)
    for text, titles in zip(written, cohort.histories, strict=True):
        stats = profile_word_stats(text, titles[-4:])
        assert stats["words"] == 3 and stats["in_history"] == 1.0
    config.judge.scoring = "letters"
    for text, titles in zip(
        evaluate.history_profiles(config, cohort), cohort.histories, strict=True
    ):
        assert all(title in text for title in titles[-4:])
