"""From ranks to the numbers of evaluation.json."""

import numpy as np
import pytest

from blue.evaluation import metrics, summary


def make_scores(num_users=200, seed=0):
    """Targets of `blue` score well, those of `base` a little, of others not at all."""
    rng = np.random.default_rng(seed)
    lifts = {"random": 0.0, "all_history": 1.0, "popular": 0.1, "empty": 0.0}
    lifts |= {"base": 0.4, "shuffled_base": 0.0, "10h+base": 0.5, "10_history": 0.45}
    lifts |= {"blue": 0.6, "shuffled_blue": 0.0, "10h+blue": 0.7, "rlpf": 0.5}
    scores = {name: rng.random((num_users, 20)) for name in lifts}
    for name, lift in lifts.items():
        scores[name][:, 0] += lift
    return scores


def make_ranked(scores, users=None, **fields):
    values = {
        name: metrics.ranking_metrics(metrics.rank_of_target(s))
        for name, s in scores.items()
    }
    num, size = next(iter(scores.values())).shape
    facts = {
        "candidates": size,
        "chance": metrics.chance_metrics(np.array([size])),
    }
    rows = np.arange(num)
    ties = {name: float(metrics.tied_targets(s).mean()) for name, s in scores.items()}
    users = rows if users is None else users
    return summary.Ranked(rows, users, values, facts, ties)._replace(**fields)


def summarise(ranked, **changes):
    settings = dict(resamples=500, seed=0)
    return summary.summarise(ranked, **(settings | changes))


def find(result, a, b, metric="ndcg@10"):
    wanted = {"a": a, "b": b, "metric": metric}
    return next(d for d in result["differences"] if wanted.items() <= d.items())


def test_summary_holds_every_method_and_paired_difference():
    ranked = make_ranked(make_scores())
    result = summarise({"1+19": ranked})
    values = ranked.values
    assert set(result["methods"]) == set(values)
    for method, protocols in result["methods"].items():
        assert set(protocols) == {"1+19"}
        for key, interval in protocols["1+19"].items():
            assert interval["mean"] == pytest.approx(values[method][key].mean())
            assert interval["low"] <= interval["mean"] <= interval["high"]
    for d in result["differences"]:
        paired = values[d["a"]][d["metric"]] - values[d["b"]][d["metric"]]
        alone = metrics.bootstrap_interval(paired, resamples=500, seed=0)
        for key, expected in alone._asdict().items():
            assert d[key] == pytest.approx(expected, abs=1e-12)
        half = result["half_widths"][f"{d['a']} - {d['b']}"]["1+19"][d["metric"]]
        assert half == pytest.approx((d["high"] - d["low"]) / 2)
        assert d["mdd"] == pytest.approx(2.8 * paired.std(ddof=1) / 200**0.5)
    facts = result["protocols"]["1+19"]
    assert facts["candidates"] == 20 and facts["users"] == facts["targets"] == 200
    assert facts["chance"]["recall@10"] == pytest.approx(0.5)
    assert facts["chance"]["ndcg@10"] == pytest.approx(
        sum(1 / np.log2(r + 1) for r in range(1, 11)) / 20
    )


def test_several_targets_of_a_user_are_one_observation():
    """Users of one row or of seven count the same, in means and in resampling."""
    scores = make_scores(num_users=80)
    users = np.repeat(np.arange(20), np.tile([1, 7], 10))
    found = summarise({"1+19": make_ranked(scores, users)})
    per_user = {name: [] for name in scores}
    for name, rows in scores.items():
        ranks = metrics.rank_of_target(rows)
        values = metrics.ndcg(ranks, k=10)
        per_user[name] = np.array([values[users == u].mean() for u in range(20)])
        interval = found["methods"][name]["1+19"]["ndcg@10"]
        alone = metrics.bootstrap_interval(per_user[name], resamples=500, seed=0)
        assert interval == pytest.approx(alone._asdict())
    d = find(found, "blue", "base")
    paired = per_user["blue"] - per_user["base"]
    assert d["mean"] == pytest.approx(paired.mean())
    assert d["mdd"] == pytest.approx(2.8 * paired.std(ddof=1) / 20**0.5)
    facts = found["protocols"]["1+19"]
    assert (facts["users"], facts["targets"]) == (20, 80)


def test_ties_are_reported():
    scores = make_scores(num_users=4)
    scores["popular"] = np.zeros((4, 20))
    result = summarise({"1+19": make_ranked(scores)})
    assert result["ties"]["1+19"]["popular"] == 1.0
    assert result["ties"]["1+19"]["blue"] == 0.0
    assert result["methods"]["popular"]["1+19"]["ndcg@10"]["mean"] == 0.0


def test_popularity_strata_are_thirds_of_the_interactions():
    # in order of counts: item 2 (5), 0 (4), 3 (2), 1 (1), 5 (0); 12 interactions
    counts = np.array([4, 1, 5, 2, 0])
    found = summary.popularity_strata(counts, np.array([0, 1, 2, 3, 4, 2]))
    # item 0 begins at 5 of 12, in the second third; 3 at 9, in the last
    assert found == ["mid", "tail", "head", "tail", "tail", "head"]


def test_length_strata_by_hand():
    lengths = [0, 1, 2, 3, 9, 10, 49, 50, 100, 5000]
    names = ["0", "1-2", "1-2", "3-4", "5-9", "10-19", "20-49", "50-99"]
    assert summary.length_strata(lengths) == [*names, "100+", "100+"]


def test_strata_are_the_means_of_their_rows():
    ranked = make_ranked(make_scores(num_users=60))
    labels = ["tail"] * 40 + ["head"] * 19 + ["mid"]
    found = summary.stratify(
        ranked, labels, names=summary.POPULARITY, resamples=50, seed=0
    )
    assert list(found) == ["head", "tail"]  # one user alone has no interval
    assert (found["head"]["users"], found["tail"]["targets"]) == (19, 40)
    for name, part in (("head", slice(40, 59)), ("tail", slice(0, 40))):
        for method, values in ranked.values.items():
            mean = found[name]["methods"][method]["ndcg@10"]["mean"]
            assert mean == pytest.approx(values["ndcg@10"][part].mean())
        assert find(found[name], "blue", "base")["mdd"] > 0


def test_strata_of_a_protocol_that_ranks_some_rows():
    """Labels are of the cohort's rows; the protocol left some of them out."""
    ranked = make_ranked(make_scores(num_users=4))
    kept = ranked._replace(rows=np.array([0, 2, 5, 7]))
    targets = np.array([0, 1, 1, 0, 0, 0, 0, 1])
    found = summary.all_strata(
        {"1+19": kept}, np.array([8, 1]), targets, [3] * 8, resamples=20, seed=0
    )
    assert {k: v["users"] for k, v in found["popularity"]["1+19"].items()} == {
        "head": 2,
        "tail": 2,
    }
    assert list(found["history_length"]["1+19"]) == ["3-4"]
