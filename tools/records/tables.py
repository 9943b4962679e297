"""The tables of experiments/real_logs/tables.md from the records of the runs.

There is one table of methods and one of differences. A row is a run: NDCG@10, mean and
95% interval over users. The second adds the differences that the run could have
detected, and the verdict.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blue.evaluation import report
from blue.text.markdown import markdown_table

METHODS = (
    *("popular", "ease", "mean_recent", "mean_recent_centred", "10_history"),
    *("constant", "pseudo_item", "base", "blue", "shuffled_blue"),
    *("10h+base", "10h+blue", "10h+pseudo_item"),
)
DIFFERENCES = (
    *(("blue", "base"), ("blue", "shuffled_blue"), ("blue", "pseudo_item")),
    *(("blue", "10_history"), ("10h+blue", "10h+base"), ("10h+blue", "10_history")),
)
PROTOCOLS = ("1+99", "1+99-popularity")


def verdict(found: Mapping[str, Any]) -> str:
    """What the interval of a difference says; silence is not equality."""
    if found["low"] > 0:
        return "better"
    if found["high"] < 0:
        return "worse"
    return "not decidable at this scale"


def method_rows(runs: Mapping[str, Any], protocol: str) -> list[list[str]]:
    """One row a method, one column a run."""
    rows = []
    for method in METHODS:
        found = [result["methods"].get(method, {}).get(protocol) for result in runs]
        cells = [report.interval(f["ndcg@10"]) if f else "-" for f in found]
        rows.append([f"`{method}`", *cells])
    return rows


def difference_rows(runs: Sequence[Any], protocol: str) -> list[list[str]]:
    """One row a pair of methods, one column a run: difference, MDD, verdict."""
    rows = []
    for a, b in DIFFERENCES:
        cells = []
        for result in runs:
            found = [
                d
                for d in result["differences"]
                if (d["a"], d["b"], d["protocol"], d["metric"])
                == (a, b, protocol, "ndcg@10")
            ]
            cells.append("-")
            if found:
                shown = report.interval(found[0], signed=True)
                mdd = f"detectable {found[0]['mdd']:.3f}"
                cells[-1] = f"{shown}, {mdd}: {verdict(found[0])}"
        rows.append([f"`{a}` - `{b}`", *cells])
    return rows


def print_tables(paths: Sequence[Path]) -> None:
    """Prints the page's tables, of one results.json a run."""
    runs = [json.loads(path.read_text("utf-8")) for path in paths]
    names = [path.parent.name for path in paths]
    sizes = [f"{r['users']} users, {r['targets']} targets" for r in runs]
    header = [f"{n} ({s})" for n, s in zip(names, sizes, strict=True)]
    for protocol in PROTOCOLS:
        print(f"### {protocol}, NDCG@10\n")
        print(markdown_table(["method", *header], method_rows(runs, protocol)), "\n")
        print(markdown_table(["difference", *names], difference_rows(runs, protocol)))
        print()
    for name, result in zip(names, runs, strict=True):
        for protocol, facts in result.get("transfer", {}).get("protocols", {}).items():
            cells = report.difference_rows(
                result["transfer"],
                protocol,
                [("blue", "base"), ("blue", "shuffled_blue")],
            )
            for cell in cells:
                print(
                    f"* {name}, {protocol} ranked by {result['transfer']['encoder']} "
                    f"({facts['users']} users): {cell[0]} {cell[1]}"
                )
