"""The page evaluation.md and the terminal's closing table, from evaluation.json.

Titles and profiles are untrusted text. They are escaped, so they cannot break a table
or add links, images or HTML to the page.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from blue.evaluation import methods, panel
from blue.evaluation.methods import HEADLINES, RECENT
from blue.evaluation.summary import METRICS
from blue.text.markdown import escape, markdown_table, summary_table

STATISTICS = {
    "finished": "finished",
    "tokens": "tokens",
    **panel.LABELS,
    "reid@1": "re-identification",
    "shuffle_drop": "NDCG@10 lost with another user's",
}
PROTOCOL_WORDS = {
    "1+99": "The next item among items drawn uniformly",
    "1+99-popularity": "The next item among items drawn by popularity to the 0.75",
    "1+99-category": "The next item among items of its category, drawn uniformly",
    "full": "The next item among the whole catalogue but the user's own items",
    "expected-1+99": "1+99 in exact expectation over the draws",
    "expected-1+99-popularity": "1+99-popularity in exact expectation over the draws",
}
STRATA_WORDS = {
    "popularity": "by the target's popularity (thirds of the training interactions)",
    "history_length": "by events in the history",
}


class User(NamedTuple):
    """A test user to show: history, next item, profiles."""

    recent_titles: list[str]
    next_title: str
    profiles: dict[str, str]  # method -> profile


def interval(values: Mapping[str, Any], *, signed: bool = False) -> str:
    """`0.143 [0.120, 0.166]`, with signs for a difference."""
    form = "+.3f" if signed else ".3f"
    mean, low, high = (format(values[k], form) for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def method_rows(result: Mapping[str, Any], protocol: str) -> list[list[str]]:
    """One row a method: its name and its metrics with intervals."""
    return [
        [method, *(interval(values[protocol][key]) for key in METRICS)]
        for method, values in result["methods"].items()
        if protocol in values
    ]


def difference_rows(
    result: Mapping[str, Any],
    protocol: str,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> list[list[str]]:
    """One row a pair (of `pairs`, or of all): paired differences, and the smallest
    detectable one.

    The last column is the minimum detectable difference of NDCG@10.
    """
    cells: dict[str, dict[str, str]] = {}
    for d in result["differences"]:
        if d["protocol"] == protocol and (pairs is None or (d["a"], d["b"]) in pairs):
            row = cells.setdefault(f"{d['a']} - {d['b']}", {})
            row[d["metric"]] = interval(d, signed=True)
            if d["metric"] == "ndcg@10":
                row["mdd"] = f"{d['mdd']:.3f}"
    return [
        [name, *(row[key] for key in (*METRICS, "mdd"))] for name, row in cells.items()
    ]


def detectable(differences: Sequence[Mapping[str, Any]], users: int) -> str:
    """A sentence on the differences of NDCG@10 that this many users can show."""
    shown = [
        f"{d['a']} - {d['b']} {d['mdd']:.3f}"
        for d in differences
        if (d["a"], d["b"]) in HEADLINES and d["metric"] == "ndcg@10"
    ]
    return (
        f"Minimum detectable difference of NDCG@10 with {users} users (80% power, "
        f"two-sided 5%): {', '.join(shown) or 'none shown'}."
    )


def protocol_sentence(result: Mapping[str, Any], protocol: str) -> str:
    """`detectable` of one protocol."""
    of_protocol = [d for d in result["differences"] if d["protocol"] == protocol]
    return detectable(of_protocol, result["protocols"][protocol]["users"])


def headline(result: Mapping[str, Any], protocol: str) -> str:
    """One line for a protocol: its key differences of NDCG@10."""
    shown = [
        f"{d['a']} - {d['b']} {interval(d, signed=True)} (detectable {d['mdd']:.3f})"
        for d in result["differences"]
        if d["protocol"] == protocol
        and d["metric"] == "ndcg@10"
        and (d["a"], d["b"]) in HEADLINES
    ]
    return f"{protocol}, NDCG@10: {'; '.join(shown)}"


def verdict(result: Mapping[str, Any], method: str, protocol: str) -> str:
    """One sentence: which raw-history methods `method` beats on NDCG@10, which not.

    A win or a loss needs an interval clear of zero; everything else is undecided.
    """
    raw = methods.of_group(methods.RAW)
    groups: dict[str, list[str]] = {"beats": [], "loses to": [], "undecided": []}
    for d in result["differences"]:
        key = (d["a"], d["protocol"], d["metric"])
        if key == (method, protocol, "ndcg@10") and d["b"] in raw:
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


def judge_sentence(judge: Mapping[str, Any]) -> str:
    """A sentence: the judge's accuracy, and whether it is reliable.

    evaluation.md and evaluation.json keep the word "reader" of version 0.1.0 for the
    judge.
    """
    spread = {"mean": judge["accuracy"], "low": judge["low"], "high": judge["high"]}
    sentence = (
        f"The multiple-choice reader ({escape(judge['model'])}), given the user's own "
        f"recent history, picks the next item with accuracy {interval(spread)} "
        f"({judge['n']} questions, chance {judge['chance']:.3f})"
    )
    return f"{sentence}: {judge['note']}." if judge["note"] else f"{sentence}."


def profile_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """One row a statistic, one column a method with profiles."""
    stats = result["profile_stats"]
    return [
        [label, *(f"{s[key]:.3g}" if key in s else "-" for s in stats.values())]
        for key, label in STATISTICS.items()
        if any(key in s for s in stats.values())
    ]


def user_section(number: int, user: User) -> str:
    """Recent history, next item and the profiles of one user, all escaped."""
    lines = [f"### User {number}", "", "Recent history, oldest first:", ""]
    lines += [f"- {escape(title)}" for title in user.recent_titles]
    lines += ["", f"Next item: {escape(user.next_title)}", ""]
    for method, profile in user.profiles.items():
        lines += [f"Profile, {method}:", "", f"> {escape(profile) or '(empty)'}", ""]
    return "\n".join(lines)


def strata_tables(strata: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """NDCG@10 of each method in each part of the rows, as a table and a sentence."""
    header = ["NDCG@10", *(f"{k} ({v['users']} users)" for k, v in strata.items())]
    names = next(iter(strata.values()))["methods"] if strata else {}
    rows = [
        [
            method,
            *(interval(part["methods"][method]["ndcg@10"]) for part in strata.values()),
        ]
        for method in names
    ]
    lines = [
        f"{name}: {detectable(part['differences'], part['users'])}"
        for name, part in strata.items()
    ]
    return [markdown_table(header, rows), "\n".join(f"* {line}" for line in lines)]


def recommended_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """One row a method: how popular and varied its ten best of the catalogue are."""
    keys = ("log_popularity", "gini", "coverage")
    return [
        [m, *(f"{r[k]:.3f}" for k in keys)] for m, r in result["recommended"].items()
    ]


def cold_start_rows(curve: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row a history length: users, NDCG@10 of each method, trained - base."""
    rows = []
    for point in curve:
        row = [str(point["events"]), str(point["users"])]
        row += [interval(values["ndcg@10"]) for values in point["methods"].values()]
        found = [d for d in point["differences"] if d["metric"] == "ndcg@10"]
        row += [
            f"{interval(d, signed=True)} (detectable {d['mdd']:.3f})" for d in found
        ]
        rows.append(row)
    return rows


def cold_start_header(curve: Sequence[Mapping[str, Any]]) -> list[str]:
    """The header over `cold_start_rows`."""
    found = [d for d in curve[0]["differences"] if d["metric"] == "ndcg@10"]
    pairs = [f"{d['a']} - {d['b']}" for d in found]
    return ["events", "users", *curve[0]["methods"], *pairs]


def closing(result: Mapping[str, Any], users: Sequence[User]) -> str:
    """The text for the terminal: the first protocol, a line for each other,
    profiles."""
    trained = methods.trained(result["methods"])
    first, *more = result["protocols"]
    header = [first, *METRICS.values()]
    parts = [
        summary_table(method_rows(result, first), header),
        summary_table(
            difference_rows(result, first),
            ["difference", *METRICS.values(), "detectable"],
        ),
        protocol_sentence(result, first),
        *(verdict(result, form, first) for form in (trained, RECENT + trained)),
    ]
    lines = [headline(result, protocol) for protocol in more]
    if "transfer" in result:
        transfer = result["transfer"]
        name = html.unescape(escape(transfer["encoder"]))
        lines += [
            f"ranked by {name}: {headline(transfer, protocol)}"
            for protocol in transfer["protocols"]
        ]
    if lines:
        parts.append("\n".join(lines))
    if curve := result.get("cold_start"):
        parts.append(summary_table(cold_start_rows(curve), cold_start_header(curve)))
    stats = result["profile_stats"]
    parts.append(summary_table(profile_rows(result), ["profiles of", *stats]))
    parts.append(html.unescape(judge_sentence(result["reader"])))
    for user in users:
        lines = [f"next item: {' '.join(user.next_title.split())}"]
        lines += [f"  {m}: {' '.join(p.split())}" for m, p in user.profiles.items()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def protocol_section(
    result: Mapping[str, Any], protocol: str, *, all_pairs: bool, title: str
) -> list[str]:
    """One protocol of the page: methods, differences, the detectable difference."""
    facts = result["protocols"][protocol]
    chance = ", ".join(f"{METRICS[k]} {facts['chance'][k]:.4f}" for k in METRICS)
    pairs = None if all_pairs else methods.key_pairs(result["methods"])
    notes = f" {facts['note']}" if facts.get("note") else ""
    parts = [
        f"## {title}",
        f"{PROTOCOL_WORDS.get(protocol, 'The next item among drawn items')}: "
        f"{facts['candidates']:.0f} candidates, {facts['targets']} targets of "
        f"{facts['users']} users; ties count against the target. Chance: {chance}."
        f"{notes}",
        markdown_table(["method", *METRICS.values()], method_rows(result, protocol)),
        protocol_sentence(result, protocol),
        markdown_table(
            ["difference", *METRICS.values(), "detectable"],
            difference_rows(result, protocol, pairs),
        ),
        protocol_sentence(result, protocol),
    ]
    return parts


def more_sections(result: Mapping[str, Any]) -> list[str]:
    """Sections that exist of: second encoder, strata, recommendations, cold start."""
    parts = []
    if transfer := result.get("transfer"):
        name = escape(transfer["encoder"])
        for protocol in transfer["protocols"]:
            title = f"{protocol}, ranked by another encoder"
            section = protocol_section(transfer, protocol, all_pairs=False, title=title)
            section.insert(1, f"The same profiles ranked by {name}.")
            parts += section
    for kind, by_protocol in result.get("strata", {}).items():
        for protocol, strata in by_protocol.items():
            if strata:
                parts += [
                    f"## {protocol}, {STRATA_WORDS[kind]}",
                    *strata_tables(strata),
                ]
    if result.get("recommended"):
        header = ["method", "mean log popularity", "Gini", "coverage"]
        parts += [
            "## What is recommended",
            "Of the ten best items of the whole catalogue for each target: mean of "
            "log(1 + training interactions), Gini coefficient of how often items are "
            "recommended, share of the catalogue recommended at all.",
            markdown_table(header, recommended_rows(result)),
        ]
    if curve := result.get("cold_start"):
        parts += [
            "## Cold start",
            "NDCG@10 where only the newest events of the history are known; users with "
            "fewer are left out of the row.",
            markdown_table(cold_start_header(curve), cold_start_rows(curve)),
        ]
    return parts


def markdown(result: Mapping[str, Any], users: Sequence[User]) -> str:
    """The page evaluation.md: the numbers of `result`, then the users, if any.

    The first protocol is shown in full, with its strata. The others have their methods
    and key differences; all differences are in evaluation.json.
    """
    parts = [f"# Evaluation on {escape(result['dataset'])}"]
    models = ", ".join(f"{k}: {escape(v)}" for k, v in result["models"].items())
    parts.append(
        f"{result['users']} test users, {result['targets']} targets, seed "
        f"{result['seed']}. Profilers: {models}. "
        "Mean over users (of each user's mean over its targets) and 95% interval from "
        f"{result['resamples']} bootstrap resamples of the "
        "users; differences are paired. The intervals are not corrected for the number "
        "of comparisons, and cover the choice of users, not of seeds. The column "
        "detectable is the minimum detectable difference of NDCG@10 (80% power, "
        "two-sided 5%): smaller ones cannot be expected to show."
    )
    trained = methods.trained(result["methods"])
    for place, protocol in enumerate(result["protocols"]):
        parts += protocol_section(
            result, protocol, all_pairs=place == 0, title=protocol
        )
        forms = (trained, RECENT + trained)
        parts.append(" ".join(verdict(result, form, protocol) for form in forms))
    parts += more_sections(result)
    parts += [
        "## Profiles",
        markdown_table(
            ["means over users", *result["profile_stats"]], profile_rows(result)
        ),
        "Shares of profiles (finished, empty, leaks of the target), of histories that "
        "hold the target's title, of a profile's mentions and sentences, of its "
        "content words (distinct, in history), of its runs of words (repeated, shared "
        "with more than 5% of other users, inside a copied run of 4 or more). zip "
        "ratio: bytes compressed / raw; re-identification: profiles nearer to their "
        "own user's next item than to any other user's; tokens and words are counts.",
        "## Reader",
        judge_sentence(result["reader"]),
    ]
    if users:
        parts.append(f"## The first {len(users)} test users")
        parts += [user_section(i, user) for i, user in enumerate(users, 1)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def card_section(evaluation: Mapping[str, Any]) -> str:
    """The evaluation as a section of a model card, in Markdown."""
    protocol = next(iter(evaluation["protocols"]))
    header = ["ranked by", *METRICS.values()]
    pairs = methods.key_pairs(evaluation["methods"])
    parts = [
        f"{evaluation['users']} test users of {escape(evaluation['dataset'])}, "
        f"never trained on; protocol {protocol}; mean and 95% interval over users. "
        f"`{methods.trained(evaluation['methods'])}` is the profiler of the same run.",
        markdown_table(header, method_rows(evaluation, protocol)),
        "Differences on the same users:",
        markdown_table(
            ["difference", *METRICS.values(), "detectable NDCG@10"],
            difference_rows(evaluation, protocol, pairs),
        ),
    ]
    return "\n\n".join(parts)
