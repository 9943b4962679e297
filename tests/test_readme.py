"""The README against the code: commands, concept table, file map, configs."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest

from blue.main import STAGES
from configs import base

ROOT = Path(__file__).parents[1]
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
    sys.path.insert(0, str(ROOT / "tools"))
    import readme_results

    path = ROOT / "experiments/quickstart/results.json"
    assert readme_results.block(json.loads(path.read_text())) in README
