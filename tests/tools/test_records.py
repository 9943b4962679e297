"""`python -m tools.records`: what is printed is what the pages show."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.records import __main__ as records
from tools.records import collect

ROOT = Path(__file__).parents[2]
RUNS = ("movietweetings", "movielens", "bgg25", "xwines")


def test_the_recorded_tables_are_those_of_the_page(capsys):
    results = [f"{ROOT}/experiments/{name}/results.json" for name in RUNS]
    records.main(["tables", *results])
    page = (ROOT / "experiments/real_logs/tables.md").read_text().splitlines()
    shown = {line.strip() for line in page}
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert len(printed) > 40 and set(printed) <= shown


def test_curves_are_means_over_blocks_of_steps(tmp_path):
    rows = [
        {"step": 0, "stage": "profiler", "policy/kl": 1.0, "reward/total": None},
        {"step": 1, "stage": "profiler", "policy/kl": 2.0, "reward/total": 0.5},
        {"step": 2, "stage": "profiler", "policy/kl": 4.0},
        {"step": 0, "stage": "encoder", "policy/loss": 3.0},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(lines)
    target = tmp_path / "curves.csv"
    records.main(["curves", f"{tmp_path}/metrics.jsonl", str(target), "--block=2"])
    with target.open() as file:
        found = list(csv.DictReader(file))
    key = lambda name: [row[name] for row in found]
    assert key("stage") == ["profiler", "profiler", "encoder"]
    assert key("first_step") == ["0", "2", "0"]
    assert key("policy/kl") == ["1.5", "4", ""]
    assert key("reward/total") == ["0.5", "", ""]


def test_the_cost_of_a_run_and_its_rounded_numbers():
    rows = [{"stage": "encoder", "time/step_s": s} for s in (30.0, 60.0)]
    assert collect.cost_table(rows).splitlines()[-1] == "| encoder | 2 | 45.00 | 2 |"
    found = collect.rounded({"a": [1 / 3, 7], "b": {"c": 2e-6, "d": "x"}})
    assert found == {"a": [0.33333, 7], "b": {"c": 0.0, "d": "x"}}


@pytest.mark.parametrize("arguments", [["--help"], ["collect", "--help"], ["nothing"]])
def test_the_command_tells_what_it_can_do(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "tools.records", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
    )
    told = done.stdout or done.stderr
    assert done.returncode == (0 if "--help" in arguments else 2), told
    assert "python -m tools.records" in told
    if arguments == ["--help"]:
        for name in ("collect", "curves", "tables", "pages"):
            assert f"python -m tools.records {name}" in told
