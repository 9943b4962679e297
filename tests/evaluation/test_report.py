"""The page and the closing table that tell evaluation.json."""

import numpy as np

from blue.evaluation import methods, panel, report, summary
from tests.evaluation.test_summary import find, make_ranked, make_scores, summarise

HOSTILE = (
    "| a | `b`\n# head <script>x</script> [c](http://d) ![e](f) *g* $h$ \\|\u202ei\x07"
)


def make_result(**changes):
    first = make_ranked(make_scores())
    second = make_ranked(make_scores(seed=1))
    result = {
        "dataset": HOSTILE,
        "users": 200,
        "targets": 200,
        "seed": 0,
        "resamples": 500,
        "models": {"base": "tiny", "blue": "tiny after profiler"},
        **summarise({"1+19": first, "full": second}),
        "profile_stats": {
            "blue": panel.statistics(["likes tents"], [["red tent"]], ["blue tent"])
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


def test_page_holds_tables_sentences_and_users():
    result = make_result()
    users = [
        report.User(["red tent", HOSTILE], "blue tent", {"base": "", "blue": HOSTILE})
    ]
    page = report.markdown(result, users)
    rows = report.method_rows(result, "1+19") + report.difference_rows(result, "1+19")
    rows += report.method_rows(result, "full")
    for line in rows:
        assert f"| {' | '.join(line)} |" in page
    key = report.difference_rows(result, "full", methods.key_pairs(result["methods"]))
    rest = [row for row in report.difference_rows(result, "full") if row not in key]
    assert len(key) >= 6 and rest
    assert all(f"| {' | '.join(line)} |" in page for line in key)
    assert not any(f"| {' | '.join(line)} |" in page for line in rest)
    assert "20 candidates, 200 targets of 200 users" in page
    assert "script>" not in page and "](" not in page and "`" not in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {3, 5, 6}  # 2, 4 and 5 columns
    sentences = [line for line in page.splitlines() if "(80% power, two" in line]
    assert len(sentences) == 1 + 2 * 2  # the introduction, and under each table
    mdd = find(result, "blue", "base")["mdd"]
    assert f"with 200 users (80% power, two-sided 5%): blue - base {mdd:.3f}," in page
    assert report.verdict(result, "10h+blue", "1+19") in page
    assert "accuracy 0.400 [0.350, 0.450] (200 questions, chance 0.250)." in page
    assert "- red tent" in page and "> (empty)" in page
    assert "Next item: blue tent" in page


def test_page_says_when_the_judge_is_at_chance_and_shows_no_users_unasked():
    note = "reader at chance: not a result"
    result = make_result()
    result["reader"] |= {"note": note}
    page = report.markdown(result, [])
    assert f"chance 0.250): {note}." in page
    assert "test users\n" not in page and "### User" not in page


def test_terminal_shows_tables_verdict_judge_and_users_on_one_line_each():
    result = make_result()
    users = [report.User(["red tent"], "blue tent", {"base": "a\nb", "blue": "c"})]
    text = report.closing(result, users)
    assert report.verdict(result, "blue", "1+19") in text
    assert "accuracy 0.400 [0.350, 0.450] (200 questions, chance 0.250)." in text
    assert "next item: blue tent\n  base: a b\n  blue: c" in text
    for row in report.method_rows(result, "1+19"):
        assert row[1] in text
    assert "\nfull, NDCG@10: blue - base " in text
    assert report.protocol_sentence(result, "1+19") in text


def test_more_of_the_result_is_told_where_it_is_there():
    result = make_result()
    assert report.more_sections(result) == []
    ranked = make_ranked(make_scores())
    settings = dict(resamples=50, seed=0)
    counts, targets = np.array([9, 3, 3, 1, 1, 1]), np.arange(200) % 6
    lengths = [5] * 100 + [30] * 100
    strata = summary.all_strata({"1+19": ranked}, counts, targets, lengths, **settings)
    facts = {"log_popularity": 1.25, "gini": 0.5, "coverage": 0.125}
    by_method, differences = summary.intervals_of(
        ranked, [("blue", "base")], metric_names=["ndcg@10"], **settings
    )
    point = {"events": 3, "users": 7, "targets": 9, "methods": by_method}
    result |= {
        "strata": strata,
        "recommended": {"blue": facts},
        "cold_start": [point | {"differences": differences}],
        "transfer": {"encoder": HOSTILE, **summarise({"1+19": ranked})},
    }
    page = report.markdown(result, [])
    assert "script>" not in page and "](" not in page
    for heading in (
        "## 1+19, ranked by another encoder",
        "## 1+19, by the target's popularity (thirds of the training interactions)",
        "## 1+19, by events in the history",
        "## What is recommended",
        "## Cold start",
    ):
        assert heading in page
    assert "| NDCG@10 | head (" in page and "* tail: Minimum detectable" in page
    assert "| 5-9 (100 users) | 20-49 (100 users) |" in page
    assert "| blue | 1.250 | 0.500 | 0.125 |" in page
    assert "| 3 | 7 | " in page and "| blue - base |" in page
    text = report.closing(result, [])
    assert "\nranked by " in text and "\x07" not in text
    assert text.count("blue - base") >= 4
