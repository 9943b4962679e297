"""The README's results of the quickstart; a test holds them against it."""

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
    lines.append("")
    lines.append(
        "Words of a profile that occur in the user's history: "
        f"{stats['base']['in_history']:.0%} before, "
        f"{stats['blue']['in_history']:.0%} after; distinct words: "
        f"{stats['base']['distinct_words']:.0%} and "
        f"{stats['blue']['distinct_words']:.0%}; finished: "
        f"{stats['base']['finished']:.1%} and {stats['blue']['finished']:.1%}."
    )
    reader = result["reader"]
    lines.append(
        f"The reader picks the next item of four in {reader['accuracy']:.1%} "
        f"[{reader['low']:.1%}, {reader['high']:.1%}] of {reader['n']} questions "
        f"(chance {reader['chance']:.0%})."
    )
    return "\n".join(lines)
