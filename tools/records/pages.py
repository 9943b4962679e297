"""The tables of README.md and experiments/README.md, from the records of the runs.

A test holds them against the two pages.
"""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHOWN = (
    ("random", "a random order"),
    ("popular", "popularity"),
    ("mean_items", "mean of the history's item vectors"),
    ("all_history", "all history titles"),
    ("10_history", "last 10 titles"),
    ("empty", "an empty profile"),
    ("base", "**profile before GRPO** (`base`)"),
    ("blue", "**profile after GRPO** (`blue`)"),
    ("shuffled_blue", "another user's profile after GRPO"),
    ("10h+base", "last 10 titles + profile before"),
    ("10h+blue", "last 10 titles + profile after"),
    ("10h+shuffled_blue", "last 10 titles + another user's profile"),
)
LOGS = {  # of the first page: name -> folder
    "MovieTweetings": "movietweetings",
    "MovieLens": "movielens",
    "BGG25": "bgg25",
    "X-Wines": "xwines",
}
COLUMNS = ("base", "blue", "shuffled_blue", "10_history")


def cell(value: dict, *, signed: bool = False) -> str:
    """`.123 [.100, .146]`."""
    form = "+.3f" if signed else ".3f"
    mean, low, high = (format(value[k], form) for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def block(result: dict) -> str:
    """The table of methods and the differences that matter, as Markdown."""
    protocol = next(iter(result["protocols"]))
    lines = ["| ranked by | NDCG@10 | Recall@10 |", "|---|---|---|"]
    for name, words in SHOWN:
        scores = result["methods"][name][protocol]
        lines.append(
            f"| {words} | {cell(scores['ndcg@10'])} | {cell(scores['recall@10'])} |"
        )
    found = {
        (d["a"], d["b"]): d
        for d in result["differences"]
        if (d["metric"], d["protocol"]) == ("ndcg@10", protocol)
    }
    lines.append("")
    for a, b in (
        ("blue", "base"),
        ("blue", "shuffled_blue"),
        ("base", "shuffled_base"),
        ("base", "empty"),
        ("10h+blue", "10h+base"),
        ("10h+blue", "10_history"),
        ("blue", "10_history"),
        ("blue", "mean_items"),
    ):
        lines.append(f"* `{a}` - `{b}`: {cell(found[a, b], signed=True)}")
    stats = result["profile_stats"]
    lines += ["", "| profiles | before GRPO | after GRPO |", "|---|---|---|"]
    for key, words, form in (
        ("in_history", "words that occur in the user's history", ".0%"),
        ("distinct_words", "distinct words", ".0%"),
        ("finished", "finished", ".1%"),
    ):
        before, after = (format(stats[m][key], form) for m in ("base", "blue"))
        lines.append(f"| {words} | {before} | {after} |")
    judge = result["reader"]  # the key that evaluation.json has for it
    lines.append("")
    lines.append(
        "Given the user's own recent history, the judge picks the next item of four in "
        f"{judge['accuracy']:.1%} [{judge['low']:.1%}, {judge['high']:.1%}] of "
        f"{judge['n']} questions (chance {judge['chance']:.0%})."
    )
    return "\n".join(lines)


def short(number: float, *, signed: bool = False) -> str:
    """`.123`, as the first page has it."""
    return format(number, "+.3f" if signed else ".3f").replace("0.", ".", 1)


def first_page() -> str:
    """The table of README.md: a row a real log."""
    rows = []
    for name, folder in LOGS.items():
        result = load(folder)
        scores = [
            short(result["methods"][m]["1+99"]["ndcg@10"]["mean"]) for m in COLUMNS
        ]
        (found,) = (
            d
            for d in result["differences"]
            if (d["a"], d["b"], d["metric"], d["protocol"])
            == ("blue", "base", "ndcg@10", "1+99")
        )
        mean, low, high = (
            short(found[k], signed=True) for k in ("mean", "low", "high")
        )
        cells = [f"{name}, {result['users']} users", *scores]
        rows.append([*cells[:3], f"{mean} [{low}, {high}]", *cells[3:]])
    lines = [
        "| log | before GRPO | after GRPO | difference | another user's profile "
        "| last 10 titles |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def load(folder: str) -> dict:
    """The numbers of a recorded run."""
    return json.loads((ROOT / f"experiments/{folder}/results.json").read_text())
