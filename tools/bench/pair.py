"""Runs two benchmarks by turns and compares them.

    python tools/bench/pair.py --runs=3 --a='COMMAND' --b='COMMAND' [--log=FILE]

Each command prints a JSON line last, as the benchmarks of this folder do. Prints one
JSON object. For every number that both tell it has median and range of each side, and
the median of the ratios b / a of the pairs. Which side goes first changes with every
pair.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KEPT = ("peer", "versions")


def main() -> None:
    """Compares the two commands given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--a", required=True, help="a command")
    parser.add_argument("--b", required=True, help="the other one")
    parser.add_argument("--runs", type=int, default=3, help="pairs (default 3)")
    parser.add_argument("--log", type=Path, help="file that gets every line, too")
    args = parser.parse_args()
    commands = [shlex.split(args.a), shlex.split(args.b)]
    lines = run_by_turns(commands, args.runs, args.log)
    print(json.dumps(compare(*lines)))


def run_by_turns(
    commands: Sequence[Sequence[str]], runs: int, log: Path | None = None
) -> list[list[dict[str, Any]]]:
    """The lines of each command, `runs` of them; every other round goes backwards."""
    lines: list[list[dict[str, Any]]] = [[] for _ in commands]
    for number in range(runs):
        order = range(len(commands))
        for which in order if number % 2 == 0 else reversed(order):
            lines[which].append(run(commands[which], log))
    return lines


def run(command: Sequence[str], log: Path | None = None) -> dict[str, Any]:
    """The JSON line that a command prints last."""
    done = subprocess.run(command, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith('{"peer"')]
    if done.returncode or not found:
        end = done.stderr[-2000:]
        sys.exit(f"error: {shlex.join(command)} ended with {done.returncode}\n{end}")
    if log:
        with log.open("a") as file:
            file.write(found[-1] + "\n")
    return json.loads(found[-1])


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """The figures of a line: plain numbers, and medians of the others."""
    flat = {
        k: v["med"] if isinstance(v, dict) and "med" in v else v
        for k, v in line.items()
    }
    return {
        k: v
        for k, v in flat.items()
        if isinstance(v, (int, float)) and not isinstance(v, bool)
    }


def range_of(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    middle = round(statistics.median(values), 4)
    return {"med": middle, "min": min(values), "max": max(values)}


def compare(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What two sides that ran as pairs have in common, and their ratios."""
    left, right = [numbers(line) for line in a], [numbers(line) for line in b]
    metrics = {}
    for key in left[0]:
        if not all(key in line for line in (*left, *right)):
            continue
        pairs = [(x[key], y[key]) for x, y in zip(left, right, strict=True)]
        metrics[key] = {
            "a": range_of([x for x, _ in pairs]),
            "b": range_of([y for _, y in pairs]),
        }
        if all(x for x, _ in pairs):
            ratio = statistics.median([y / x for x, y in pairs])
            metrics[key]["b_over_a"] = round(ratio, 3)
    return {
        "peer": [a[0]["peer"], b[0]["peer"]],
        "runs": len(a),
        "metrics": metrics,
        "versions": [a[0]["versions"], b[0]["versions"]],
    }


if __name__ == "__main__":
    main()
