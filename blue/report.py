"""From scores to evaluation.json, and that dict in words: evaluation.md and the table.

Titles and profiles come from strangers and from a policy, so they are escaped: they
can neither break a table nor bring links, images or HTML into the page.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from blue import metrics, panel, prompts
from blue.writer import summary_table

METRICS = {"ndcg@10": "NDCG@10", "recall@10": "Recall@10", "mrr": "MRR"}
RAW_METHODS = ("all_history", "10_history", "mean_items", "popular")
# the differences users rely on (first minus second), where both methods exist
PAIRS = (
    ("blue", "base"),
    ("blue", "shuffled_blue"),
    ("base", "shuffled_base"),
    ("base", "empty"),
    ("10h+blue", "10h+base"),
    ("10h+blue", "10_history"),
    ("10h+blue", "10h+shuffled_blue"),
)
STATISTICS = {
    "finished": "finished",
    "tokens": "tokens",
    "distinct_words": "distinct words",
    "in_history": "words in history",
    "repeated_3grams": "repeated 3-grams",
    "copied": "copied 4-grams",
}
MAX_CHARS = 2000  # of one profile or title in the page


class User(NamedTuple):
    """A test user to show: what was known, what came next, what was written."""

    recent_titles: list[str]
    next_title: str
    profiles: dict[str, str]  # method -> profile


# --- numbers


def difference_pairs(
    methods: Sequence[str], others: Sequence[str]
) -> list[tuple[str, str]]:
    """Pairs (a, b) for `a - b`: PAIRS, against raw history, and with other methods."""
    trained = "blue" if "blue" in methods else "base"
    pairs = list(PAIRS)
    for ours in (trained, f"10h+{trained}"):
        pairs += [(ours, raw) for raw in RAW_METHODS]
    for other in others:
        pairs += [(other, "base"), (f"10h+{other}", "10h+base")]
        pairs += [("blue", other), ("10h+blue", f"10h+{other}")]
    return [p for p in dict.fromkeys(pairs) if set(p) <= set(methods)]


def summarise(
    scores: Mapping[str, Float[np.ndarray, "U I"]],
    *,
    others: Sequence[str],
    protocol: str,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """`protocols`, `methods`, `differences`, `half_widths` and `ties` of the result.

    A half width is that of a difference's interval: about the smallest difference that
    this number of users can tell from zero.
    """
    ranks = {name: metrics.rank_of_target(s) for name, s in scores.items()}
    values = {name: metrics.ranking_metrics(r) for name, r in ranks.items()}
    pairs = difference_pairs(list(scores), others)
    keys = list(METRICS)
    table = [values[name][key] for name in scores for key in keys]
    table += [values[a][key] - values[b][key] for a, b in pairs for key in keys]
    found = metrics.bootstrap_intervals(np.stack(table), resamples=resamples, seed=seed)
    intervals = iter(i._asdict() for i in found)
    methods = {name: {protocol: {k: next(intervals) for k in keys}} for name in scores}
    differences = [
        {"a": a, "b": b, "protocol": protocol, "metric": key, **next(intervals)}
        for a, b in pairs
        for key in keys
    ]
    half_widths: dict[str, dict[str, dict[str, float]]] = {}
    for d in differences:
        row = half_widths.setdefault(f"{d['a']} - {d['b']}", {protocol: {}})
        row[protocol][d["metric"]] = (d["high"] - d["low"]) / 2
    num = next(iter(scores.values())).shape[1]
    chance = metrics.ranking_metrics(np.arange(1, num + 1))
    facts = {
        "candidates": num,
        "chance": {key: float(v.mean()) for key, v in chance.items()},
    }
    return {
        "protocols": {protocol: facts},
        "methods": methods,
        "differences": differences,
        "half_widths": half_widths,
        "ties": {protocol: {m: metrics.tie_share(s) for m, s in scores.items()}},
    }


def profile_statistics(
    texts: Sequence[str], histories: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Means over users of the statistics that betray degenerate or invented text."""
    rows = []
    for text, titles in zip(texts, histories, strict=True):
        words = prompts.profile_word_stats(text, titles)
        rows.append(
            {
                "distinct_words": words["distinct"],
                "in_history": words["in_history"],
                "repeated_3grams": panel.repetition(text, n=3),
                "copied": panel.copy_rate(text, titles),
            }
        )
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


# --- words


def escape(text: str) -> str:
    """One line of `text` that Markdown shows as it is, at most MAX_CHARS of it."""
    if len(text) > MAX_CHARS:
        text = text[:MAX_CHARS] + "..."
    # control, direction-changing and zero-width characters are not printable
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return "".join(f"&#{ord(c)};" if c in "&<>|`*_[]!~#$\\" else c for c in text)


def interval(values: Mapping[str, Any], *, signed: bool = False) -> str:
    """`0.143 [0.120, 0.166]`, with signs for a difference."""
    form = "+.3f" if signed else ".3f"
    mean, low, high = (format(values[k], form) for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def method_rows(result: Mapping[str, Any], protocol: str) -> list[list[str]]:
    """One row a method: its name and its metrics with intervals."""
    return [
        [method, *(interval(values[protocol][key]) for key in METRICS)]
        for method, values in result["methods"].items()
    ]


def difference_rows(result: Mapping[str, Any], protocol: str) -> list[list[str]]:
    """One row a pair of methods: the paired difference of each metric."""
    cells: dict[str, dict[str, str]] = {}
    for d in result["differences"]:
        if d["protocol"] == protocol:
            row = cells.setdefault(f"{d['a']} - {d['b']}", {})
            row[d["metric"]] = interval(d, signed=True)
    return [[name, *(row[key] for key in METRICS)] for name, row in cells.items()]


def verdict(result: Mapping[str, Any], method: str, protocol: str) -> str:
    """One sentence: which raw-history methods `method` beats on NDCG@10, which not.

    A win or a loss needs an interval clear of zero; everything else is undecided.
    """
    groups: dict[str, list[str]] = {"beats": [], "loses to": [], "undecided": []}
    for d in result["differences"]:
        key = (d["a"], d["protocol"], d["metric"])
        if key == (method, protocol, "ndcg@10") and d["b"] in RAW_METHODS:
            group = "undecided"
            if d["low"] > 0:
                group = "beats"
            elif d["high"] < 0:
                group = "loses to"
            groups[group].append(f"{d['b']} ({interval(d, signed=True)})")
    undecided = groups.pop("undecided")
    parts = [f"{verb} {', '.join(names)}" for verb, names in groups.items() if names]
    if undecided:
        parts.append(f"shows no clear difference from {', '.join(undecided)}")
    return f"On NDCG@10, {method} {'; '.join(parts)}."


def reader_sentence(reader: Mapping[str, Any]) -> str:
    """The multiple-choice reader's own accuracy, and whether it may be relied on."""
    spread = {"mean": reader["accuracy"], "low": reader["low"], "high": reader["high"]}
    sentence = (
        f"The multiple-choice reader ({escape(reader['model'])}), given the user's own "
        f"recent history, picks the next item with accuracy {interval(spread)} "
        f"({reader['n']} users, chance {reader['chance']:.3f})"
    )
    return f"{sentence}: {reader['note']}." if reader["note"] else f"{sentence}."


def profile_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """One row a method with profiles: the statistics that betray degeneration."""
    return [
        [method, *(f"{s[k]:.3g}" if k in s else "-" for k in STATISTICS)]
        for method, s in result["profile_stats"].items()
    ]


def user_section(number: int, user: User) -> str:
    """Recent history, next item and the profiles of one user, all escaped."""
    lines = [f"### User {number}", "", "Recent history, oldest first:", ""]
    lines += [f"- {escape(title)}" for title in user.recent_titles]
    lines += ["", f"Next item: {escape(user.next_title)}", ""]
    for method, profile in user.profiles.items():
        lines += [f"Profile, {method}:", "", f"> {escape(profile) or '(empty)'}", ""]
    return "\n".join(lines)


def closing(result: Mapping[str, Any], users: Sequence[User]) -> str:
    """What a terminal shows at the end: methods, differences, verdict, profiles."""
    trained = "blue" if "blue" in result["methods"] else "base"
    parts = []
    for protocol in result["protocols"]:
        header = [protocol, *METRICS.values()]
        parts.append(summary_table(method_rows(result, protocol), header))
        header[0] = "difference"
        parts.append(summary_table(difference_rows(result, protocol), header))
        methods = (trained, f"10h+{trained}")
        parts += [verdict(result, method, protocol) for method in methods]
    parts.append(
        summary_table(profile_rows(result), ["profiles of", *STATISTICS.values()])
    )
    parts.append(html.unescape(reader_sentence(result["reader"])))
    for user in users:
        lines = [f"next item: {' '.join(user.next_title.split())}"]
        lines += [f"  {m}: {' '.join(p.split())}" for m, p in user.profiles.items()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def markdown(result: Mapping[str, Any], users: Sequence[User]) -> str:
    """The page evaluation.md: every number of `result`, then the users, if any."""
    parts = [f"# Evaluation on {escape(result['dataset'])}"]
    models = ", ".join(f"{k}: {escape(v)}" for k, v in result["models"].items())
    parts.append(
        f"{result['users']} test users, seed {result['seed']}. Profilers: {models}. "
        f"Mean and 95% interval from {result['resamples']} bootstrap resamples of the "
        "users; differences are paired. The intervals are not corrected for the number "
        "of comparisons, and cover the choice of users, not of seeds."
    )
    trained = "blue" if "blue" in result["methods"] else "base"
    for protocol, facts in result["protocols"].items():
        chance = ", ".join(f"{METRICS[k]} {facts['chance'][k]:.4f}" for k in METRICS)
        parts += [
            f"## {protocol}",
            f"The next item among {facts['candidates']} candidates; ties count against "
            f"it. Chance: {chance}.",
            table(["method", *METRICS.values()], method_rows(result, protocol)),
            table(["difference", *METRICS.values()], difference_rows(result, protocol)),
            " ".join(
                verdict(result, method, protocol)
                for method in (trained, f"10h+{trained}")
            ),
        ]
    parts += [
        "## Profiles",
        table(["method", *STATISTICS.values()], profile_rows(result)),
        "Shares of profiles (finished), of content words (distinct, in history), of "
        "3-grams (repeated) and of words inside a copied run of 4 or more; tokens are "
        "a mean.",
        "## Reader",
        reader_sentence(result["reader"]),
    ]
    if users:
        parts.append(f"## The first {len(users)} test users")
        parts += [user_section(i, user) for i, user in enumerate(users, 1)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"
