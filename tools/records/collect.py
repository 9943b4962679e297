"""What is kept of a finished run: its numbers, curves and twenty users.

Writes to a folder:

    results.json   evaluation.json, five decimals
    evaluation.md
    curves.csv     means over blocks of steps
    cost.md        steps and minutes a stage
    users.md       twenty test users, evenly spaced: recent history, next item, profiles

There are no identifiers of users. Then tools/plot_run.py draws the figures.
"""

import json
from pathlib import Path
from typing import Any

from blue.errors import UserError
from blue.evaluation import report
from blue.evaluation.cohort import choose_cohort
from blue.sources.data import load_examples, load_log
from blue.text.markdown import escape, markdown_table
from blue.workdir import record
from tools.records import curves

SHOWN = 20
DECIMALS = 5


def rounded(value: Any) -> Any:
    """The same plain data with floats of five decimals."""
    if isinstance(value, float):
        return round(value, DECIMALS)
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value


def cost_table(rows: list[dict[str, Any]]) -> str:
    """Steps and seconds of the training stages."""
    lines = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        times = [row["time/step_s"] for row in rows if row["stage"] == stage]
        mean = sum(times) / len(times)
        lines.append([stage, str(len(times)), f"{mean:.2f}", f"{sum(times) / 60:.0f}"])
    return markdown_table(["stage", "steps", "s a step", "minutes"], lines)


def users_page(run: Path) -> str:
    """Twenty test users with their histories and profiles."""
    config = record.load(run)
    log = load_log(config, str(run))
    split = load_examples(config, log, str(run)).test
    cohort = choose_cohort(split, log.titles, limit=config.evaluate.test_users)
    written: dict[str, list[str]] = {}
    for row in read_lines(run / "evaluation_profiles.jsonl"):
        written.setdefault(row["method"], []).append(row["profile"])
    num = len(cohort.rows)
    parts = [
        "# Twenty test users",
        "Their newest titles, the item taken next, and the profiles before (base) and "
        "after (blue) GRPO.",
    ]
    for number in range(min(SHOWN, num)):
        row = number * num // SHOWN if num > SHOWN else number
        user = report.User(
            recent_titles=cohort.histories[row][-config.prompts.recent_items :],
            next_title=log.titles[int(cohort.candidates[row, 0])],
            profiles={name: texts[row] for name, texts in written.items()},
        )
        parts.append(report.user_section(number + 1, user).rstrip())
    return "\n\n".join(parts) + "\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def collect(run: Path, out: Path) -> None:
    """All of it: from the workdir `run` to the folder `out`."""
    if not (run / "evaluation.json").exists():
        raise UserError(f"{run}: no evaluation.json in it; finish stage evaluate")
    out.mkdir(parents=True, exist_ok=True)
    result = rounded(json.loads((run / "evaluation.json").read_text("utf-8")))
    text = json.dumps(result, ensure_ascii=False, separators=(",", ":"))
    page = (run / "evaluation.md").read_text("utf-8")
    for name, content in (("results.json", text + "\n"), ("evaluation.md", page)):
        # a checkpoint is named by its place, which means nothing elsewhere
        content = content.replace(f"{run.resolve()}/", "RUN/")
        content = content.replace(escape(f"{run.resolve()}/"), "RUN/")
        (out / name).write_text(content, "utf-8")
    if (run / "metrics.jsonl").exists():
        rows = read_lines(run / "metrics.jsonl")
        curves.write(run / "metrics.jsonl", out / "curves.csv", block=10)
        (out / "cost.md").write_text(cost_table(rows) + "\n", "utf-8")
    (out / "users.md").write_text(users_page(run), "utf-8")
