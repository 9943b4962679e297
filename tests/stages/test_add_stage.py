"""A stage added exactly as blue/stages/README.md says."""

import json
import re

import pytest

from blue import stages
from blue.main import main
from blue.sources.data import load_examples, load_log
from blue.workdir.stages import STAGES, Stage
from configs import base
from tests.helpers.recipes import (
    ROOT,
    lines_of,
    promised_lines,
    python_blocks,
    readme_section,
)

RECIPE = readme_section("blue/stages/README.md", "How to add a stage")
(PATH,) = re.findall(r"in `blue/stages/`, such as `(\w+\.py)`", RECIPE)
(MODULE,) = python_blocks(RECIPE)
(ENTRY,) = re.findall(r"`STAGES` in `blue/workdir/stages.py`: `(.*)`$", RECIPE, re.M)
COMMAND = ["blue", f"--config={ROOT}/configs/base.py:tiny", "--config.stage=popular"]


@pytest.fixture
def added(monkeypatch, tmp_path):
    """The recipe's two steps."""
    (tmp_path / PATH).write_text(MODULE)
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, str(tmp_path)])
    for name, stage in eval(f"{{{ENTRY}}}", {"Stage": Stage}).items():
        monkeypatch.setitem(STAGES, name, stage)


def test_the_recipe_has_the_promised_lines():
    assert lines_of(MODULE, ENTRY) == promised_lines("a stage")


def test_without_the_recipe_there_is_no_such_stage(tmp_path, capsys):
    assert main([*COMMAND, f"--workdir={tmp_path}/run"]) == 2
    assert "stage has 'popular', must be of prepare, encoder" in capsys.readouterr().err


def test_the_stage_runs_and_help_lists_it(added, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert main([*COMMAND, f"--workdir={workdir}"]) == 0
    config = base.get_config("tiny")
    log = load_log(config, str(workdir))
    counts = load_examples(config, log, str(workdir)).item_counts
    titles = json.loads((workdir / "popular.json").read_text())
    taken = [counts[log.titles.index(title)] for title in titles]
    assert len(titles) == 10
    assert taken == sorted(counts, reverse=True)[:10]
    assert main(["blue", "--help"]) == 0
    (line,) = re.findall(r"^  popular .*$", capsys.readouterr().out, re.M)
    assert line.endswith("  list what users took most")


def test_it_runs_beside_other_stages(added, tmp_path, capsys):
    """Its name is one of those that `config.stages` may have, and it is checked."""
    both = [COMMAND[0], COMMAND[1], f"--workdir={tmp_path}/run"]
    assert main([*both, "--config.stages=popular,plan"]) == 2
    assert "it runs alone, stage=plan" in capsys.readouterr().err
