"""From scores to evaluation.json, and the page that tells it."""

import numpy as np
import pytest

from blue import metrics, report

HOSTILE = (
    "| a | `b`\n# head <script>x</script> [c](http://d) ![e](f) *g* $h$ \\|\u202ei\x07"
)


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


def summarise(scores, **changes):
    settings = dict(others=["rlpf"], protocol="1+19", resamples=500, seed=0)
    return report.summarise(scores, **(settings | changes))


def make_result(**changes):
    result = {
        "dataset": HOSTILE,
        "users": 200,
        "seed": 0,
        "resamples": 500,
        "models": {"base": "tiny", "blue": "tiny after profiler"},
        **summarise(make_scores()),
        "profile_stats": {
            "blue": report.profile_statistics(["likes tents"], [["red tent"]])
        },
        "reader": {
            "accuracy": 0.4,
            "low": 0.35,
            "high": 0.45,
            "chance": 0.25,
            "n": 200,
            "note": "",
            "model": "tiny",
        },
    }
    return result | changes


def test_summary_holds_every_method_and_paired_difference():
    scores = make_scores()
    result = summarise(scores)
    values = {
        m: metrics.ranking_metrics(metrics.rank_of_target(s)) for m, s in scores.items()
    }
    assert set(result["methods"]) == set(scores)
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
    facts = result["protocols"]["1+19"]
    assert facts["candidates"] == 20
    assert facts["chance"]["recall@10"] == pytest.approx(0.5)
    assert facts["chance"]["ndcg@10"] == pytest.approx(
        sum(1 / np.log2(r + 1) for r in range(1, 11)) / 20
    )


def test_differences_where_both_methods_exist():
    pairs = report.difference_pairs(list(make_scores()), ["rlpf"])
    assert set(pairs) == {
        *(("blue", "base"), ("blue", "shuffled_blue"), ("base", "shuffled_base")),
        *(("base", "empty"), ("10h+blue", "10h+base"), ("10h+blue", "10_history")),
        *(("blue", raw) for raw in ("all_history", "10_history", "popular")),
        *(("10h+blue", raw) for raw in ("all_history", "popular")),
        *(("rlpf", "base"), ("blue", "rlpf")),
    }
    untrained = report.difference_pairs(["base", "empty", "10h+base", "popular"], [])
    assert untrained == [
        ("base", "empty"),
        ("base", "popular"),
        ("10h+base", "popular"),
    ]


def test_ties_are_reported():
    scores = make_scores(num_users=4)
    scores["popular"] = np.zeros((4, 20))
    result = summarise(scores)
    assert result["ties"]["1+19"]["popular"] == 1.0
    assert result["ties"]["1+19"]["blue"] == 0.0
    assert result["methods"]["popular"]["1+19"]["ndcg@10"]["mean"] == 0.0


def test_verdict_needs_an_interval_clear_of_zero():
    def difference(b, low, high):
        d = {"a": "blue", "b": b, "protocol": "1+99", "metric": "ndcg@10"}
        return d | {"mean": (low + high) / 2, "low": low, "high": high}

    result = {
        "differences": [
            difference("popular", 0.1, 0.2),
            difference("all_history", -0.2, -0.1),
            difference("10_history", -0.1, 0.2),
            difference("mean_items", 0.0, 0.2),  # touches zero: not clear of it
            difference("base", 0.1, 0.2),  # not raw history
            difference("popular", -0.9, -0.8) | {"metric": "mrr"},
            difference("popular", -0.9, -0.8) | {"a": "10h+blue"},
        ]
    }
    assert report.verdict(result, "blue", "1+99") == (
        "On NDCG@10, blue beats popular (+0.150 [+0.100, +0.200]); "
        "loses to all_history (-0.150 [-0.200, -0.100]); "
        "shows no clear difference from 10_history (+0.050 [-0.100, +0.200]), "
        "mean_items (+0.100 [+0.000, +0.200])."
    )


def test_escape_leaves_nothing_that_markdown_or_html_reads():
    shown = report.escape(HOSTILE)
    assert not set(shown.replace("&#", "").replace(";", "")) & set("|`*[]<>!$\\\n\x07")
    assert "\u202e" not in shown and shown.count("#") == shown.count("&#")
    assert report.escape("plain text, 7 words; it's (all) fine.") == (
        "plain text, 7 words; it's (all) fine."
    )
    assert report.escape("a" * 5000) == "a" * report.MAX_CHARS + "..."


def test_page_holds_tables_sentences_and_users():
    result = make_result()
    users = [
        report.User(["red tent", HOSTILE], "blue tent", {"base": "", "blue": HOSTILE})
    ]
    page = report.markdown(result, users)
    for line in report.method_rows(result, "1+19") + report.difference_rows(
        result, "1+19"
    ):
        assert f"| {' | '.join(line)} |" in page
    assert "script>" not in page and "](" not in page and "`" not in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {5, 8}  # 4 columns, and 7
    assert report.verdict(result, "10h+blue", "1+19") in page
    assert "accuracy 0.400 [0.350, 0.450] (200 users, chance 0.250)." in page
    assert "- red tent" in page and "> (empty)" in page
    assert "Next item: blue tent" in page


def test_page_says_when_the_reader_is_at_chance_and_shows_no_users_unasked():
    note = "reader at chance: not a result"
    result = make_result()
    result["reader"] |= {"note": note}
    page = report.markdown(result, [])
    assert f"chance 0.250): {note}." in page
    assert "test users\n" not in page and "### User" not in page


def test_profile_statistics_by_hand():
    stats = report.profile_statistics(
        ["likes canvas tents, canvas tents", "likes the big red canvas tent"],
        [["blue tents"], ["big red canvas tent"]],
    )
    assert stats["in_history"] == pytest.approx((2 / 4 + 4 / 4) / 2)
    assert stats["distinct_words"] == pytest.approx((2 / 4 + 4 / 4) / 2)
    assert stats["copied"] == pytest.approx((0 + 4 / 6) / 2)
    assert stats["repeated_3grams"] == 0.0


def test_terminal_shows_tables_verdict_reader_and_users_on_one_line_each():
    result = make_result()
    users = [report.User(["red tent"], "blue tent", {"base": "a\nb", "blue": "c"})]
    text = report.closing(result, users)
    assert report.verdict(result, "blue", "1+19") in text
    assert "accuracy 0.400 [0.350, 0.450] (200 users, chance 0.250)." in text
    assert "next item: blue tent\n  base: a b\n  blue: c" in text
    for row in report.method_rows(result, "1+19"):
        assert row[1] in text
