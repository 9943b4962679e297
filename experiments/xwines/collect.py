"""Copies the numbers of a finished run to this folder and into README.md.

python experiments/xwines/collect.py WORKDIR

Writes results.json (the run's evaluation.json), curves.csv (the steps of all training
stages) and what stands in README.md between the lines `<!-- results -->` and
`<!-- end of results -->`.
"""

import csv
import json
import shutil
import sys
from pathlib import Path

from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parents[2]))  # BLUE from this clone
from blue import evaluate, report, sources

HERE = Path(__file__).parent
MARKS = ("<!-- results -->", "<!-- end of results -->")
COLUMNS = (
    "stage",
    "step",
    "policy/loss",
    "reward/total",
    "reward/embedding",
    "reward/embedding_std",
    "reward/unfinished",
    "reward/repetition",
    "policy/kl",
    "policy/entropy",
    "rollout/length_mean",
    "rollout/truncated",
    "eval/ndcg@10",
    "eval/profile_ndcg@10",
    "eval/finished",
    "time/step_s",
)


def read_lines(path: Path) -> list[dict]:
    """The objects of a file with one JSON object a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_curves(rows: list[dict]) -> None:
    """curves.csv: every step of every stage, four digits."""
    with (HERE / "curves.csv").open("w", newline="") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(COLUMNS)
        for row in rows:
            cells = (row.get(name, "") for name in COLUMNS)
            out.writerow(f"{c:.4g}" if isinstance(c, float) else c for c in cells)


def cost_table(rows: list[dict]) -> str:
    """Steps and seconds of the training stages."""
    lines = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        times = [row["time/step_s"] for row in rows if row["stage"] == stage]
        mean = sum(times) / len(times)
        lines.append([stage, str(len(times)), f"{mean:.1f}", f"{sum(times) / 60:.0f}"])
    return report.table(["stage", "steps", "s a step", "minutes"], lines)


def kl_sentence(rows: list[dict]) -> str:
    """KL, entropy and validation at the end of GRPO."""
    steps = [row for row in rows if row["stage"] == "profiler"]
    last = steps[-10:]
    mean = lambda part, key: sum(row[key] for row in part) / len(part)
    words = [
        f"{name} {mean(steps[:10], key):.3f} -> {mean(last, key):.3f}"
        for name, key in (
            ("reward", "reward/total"),
            ("embedding reward", "reward/embedding"),
            ("KL to the starting profiler a token", "policy/kl"),
            ("entropy a token", "policy/entropy"),
            ("tokens", "rollout/length_mean"),
            ("truncated", "rollout/truncated"),
        )
    ]
    evals = [
        f"step {row['step'] + 1}: {row['eval/ndcg@10']:.3f} and "
        f"{row['eval/profile_ndcg@10']:.3f}"
        for row in steps
        if "eval/ndcg@10" in row
    ]
    return (
        f"Means of the first 10 steps of GRPO -> of the last {len(last)}: "
        f"{', '.join(words)}. N@10 on validation users, history + profile and profile "
        f"alone, at {'; '.join(evals)}."
    )


def examples(workdir: Path, count: int = 6) -> list[str]:
    """The first test users with their profiles before and after GRPO."""
    config = ConfigDict(json.loads((workdir / "config.json").read_text())["config"])
    log = sources.load_log(config, str(workdir))
    split = sources.load_examples(config, log, str(workdir)).test
    cohort = evaluate.choose_users(split, log.titles, limit=config.evaluate.test_users)
    written: dict[str, list[str]] = {}
    for row in read_lines(workdir / "evaluation_profiles.jsonl"):
        written.setdefault(row["method"], []).append(row["profile"])
    parts = []
    for n in range(count):
        user = report.User(
            recent_titles=cohort.histories[n][-config.prompts.recent_items :],
            next_title=log.titles[int(cohort.candidates[n, 0])],
            profiles={name: texts[n] for name, texts in written.items()},
        )
        parts.append(report.user_section(n + 1, user))
    return parts


def sections(result: dict, rows: list[dict], shown: list[str]) -> str:
    """The generated part of README.md."""
    (protocol,) = result["protocols"]
    header = list(report.METRICS.values())
    models = "; ".join(f"{name}: {text}" for name, text in result["models"].items())
    parts = [
        f"{result['users']} test users, seed {result['seed']}, 95% intervals from "
        f"{result['resamples']} resamples of the users. {models}.",
        report.table(["method", *header], report.method_rows(result, protocol)),
        report.table(["difference", *header], report.difference_rows(result, protocol)),
        report.verdict(result, "blue", protocol),
        report.verdict(result, "10h+blue", protocol),
        "### Profiles",
        report.table(
            ["method", *report.STATISTICS.values()], report.profile_rows(result)
        ),
        kl_sentence(rows),
        "### Reader",
        report.reader_sentence(result["reader"]),
        "### Cost",
        cost_table(rows),
        "## Example profiles",
        "The first six test users: profiles before (base) and after (blue) GRPO.",
        *shown,
    ]
    return "\n\n".join(part.strip() for part in parts)


def main(workdir: Path) -> None:
    """Everything at once; README.md keeps its words around the marked part."""
    rows = read_lines(workdir / "metrics.jsonl")
    shutil.copy(workdir / "evaluation.json", HERE / "results.json")
    write_curves(rows)
    result = json.loads((HERE / "results.json").read_text())
    generated = sections(result, rows, examples(workdir))
    text = (HERE / "README.md").read_text()
    head, rest = text.split(MARKS[0])
    tail = rest.split(MARKS[1])[1]
    text = f"{head}{MARKS[0]}\n\n{generated}\n\n{MARKS[1]}{tail}"
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
