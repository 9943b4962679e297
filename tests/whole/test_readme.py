"""The README against the code: commands, concept table, file map, configs."""

import ast
import csv
import json
import random
import re
import shlex
import stat
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from blue.main import STAGES, main
from configs import base

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONCEPTS = re.findall(r"^\| [^|]+ \| `([\w/]+\.py)` \| `(\w+)` \|$", README, re.M)


def test_the_first_screen_has_exactly_two_commands():
    commands = re.findall(r"^python3 -m venv .*$", README, re.M)
    assert len(commands) == 2 and README.count("```bash") == 2
    assert README.index(commands[1]) < README.index("\n## ")  # before any section
    assert "configs/quickstart.py" in commands[0] and "pytest" in commands[1]
    assert (ROOT / "configs/quickstart.py").exists()


@pytest.mark.parametrize("path, name", CONCEPTS, ids=lambda s: s)
def test_concepts_are_where_the_table_says(path, name):
    tree = ast.parse((ROOT / path).read_text())
    assert name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}


def test_the_table_is_not_empty():
    assert len(CONCEPTS) >= 14


def test_every_file_is_in_the_map():
    tree = README[README.index("## Files") : README.index("Letters in shapes")]
    for path in sorted(ROOT.glob("blue/**/*.py")):
        if path.name != "__init__.py":
            assert re.search(rf"\b{re.escape(path.name)}\b", tree), path


def test_stages_configs_and_fields_exist():
    for name in STAGES:
        assert f"| `{name}` |" in README
    for path in re.findall(r"`(configs/\w+\.py)`", README):
        assert (ROOT / path).exists(), path
    config = base.get_config()
    for field in re.findall(r"--config\.([a-z_][\w.]*)", README):
        node = config
        for part in field.split("."):
            assert part in node, field
            node = node[part]


def test_links_to_files_exist():
    for path in re.findall(r"`((?:experiments|tests|tools|blue)/[\w./]+)`", README):
        assert (ROOT / path).exists(), path


def test_the_results_are_the_recorded_ones():
    from tools.records import quickstart

    path = ROOT / "experiments/quickstart/results.json"
    assert quickstart.block(json.loads(path.read_text())) in README


# --- "Your own log", word for word

OWN_LOG = README[README.index("### Your own log") : README.index("### Your own enc")]


def written_out(pattern):
    """The indented block that begins like this."""
    (block,) = re.findall(rf"^    {pattern}.*\n(?:    .*\n)*", OWN_LOG, re.M)
    return [line.removeprefix("    ") for line in block.splitlines()]


def more_rows(events, items, *, users=60, of=130):
    """The example's rows, and more under its headers."""
    ids = [f"{i:04d}" for i in range(1000, 1000 + of)]
    items += [[i, f"Lamp no. {i}, {int(i) % 7}", f"B{int(i) % 5}", "9.5"] for i in ids]
    rng, start = random.Random(0), datetime(2024, 5, 1)
    for user in range(users):
        for place, item in enumerate(rng.sample(ids, 8)):
            when = start + timedelta(days=user, hours=9 * place)
            events.append([f"user {user}", item, f"{when:%Y-%m-%d %H:%M:%S}", "4"])


@pytest.mark.slow
def test_the_own_log_command_runs_to_profiles_and_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {}
    for name, header in (("clicks", "shopper,"), ("products", "sku,")):
        files[name] = list(csv.reader(written_out(header)))
    more_rows(files["clicks"], files["products"])
    for name, rows in files.items():
        with open(f"{name}.csv", "w", newline="", encoding="utf-8") as f:
            csv.writer(f).writerows(rows)
    command = " ".join(line.rstrip("\\") for line in written_out("python -m blue.main"))
    python, module, name, config, *flags = shlex.split(command.replace("DIR", "."))
    assert (python, module, name) == ("python", "-m", "blue.main")
    config = config.replace("=configs/", f"={ROOT}/configs/")
    reduced = [  # :tiny has made-up data and its cuts
        "--config.data.name=table",
        "--config.data.min_interactions=5",
        "--config.data.window_policy=rolling",
    ]
    assert main(["blue", f"{config}:tiny", *reduced, *flags]) == 0

    profiles = Path("runs/mine/profiles.jsonl")
    lines = [json.loads(line) for line in profiles.read_text().splitlines()]
    (shown,) = re.findall(r'^ +(\{"user_id": .*)\.\.\.\}$', OWN_LOG, re.M)
    keys = re.findall(r'"(\w+)": ', shown)
    assert all(list(line) == keys for line in lines)
    users = [f"user {user}" for user in range(60)] + ["anna", "ben"]
    assert [line["user_id"] for line in lines] == sorted(users)
    assert stat.S_IMODE(profiles.stat().st_mode) == 0o600
    for page in ("evaluation.md", "export/profiler/README.md"):
        assert "\n| blue | 0." in Path("runs/mine", page).read_text()


def test_the_own_log_mistake_is_the_one_that_is_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("shop").mkdir()
    for name, header in (("clicks", "shopper,"), ("products", "sku,")):
        Path(f"shop/{name}.csv").write_text("\n".join(written_out(header)))
    flags = [
        f"--config={ROOT}/configs/profiler_table.py",
        "--workdir=run",
        "--config.stage=evaluate",
        "--config.data.path=shop",
        "--config.data.events=clicks.csv",
        "--config.data.items=products.csv",
        "--config.data.columns.item_id=article",
    ]
    assert main(["blue", *flags]) == 2
    assert f"      {capsys.readouterr().err}" in OWN_LOG
