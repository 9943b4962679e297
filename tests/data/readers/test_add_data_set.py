"""A data set added exactly as blue/data/README.md says."""

import re
import sys

import pytest

from blue import read_log
from blue.data import readers
from blue.main import main
from blue.sources.data import READERS
from tests.helpers.recipes import (
    ROOT,
    lines_of,
    promised_lines,
    python_blocks,
    readme_section,
)

RECIPE = readme_section("blue/data/README.md", "How to add a data set")
(PATH,) = re.findall(r"in `blue/data/readers/`, such as `(\w+\.py)`", RECIPE)
(MODULE,) = python_blocks(RECIPE)
IMPORT = f"from blue.data.readers import {PATH.removesuffix('.py')}"
(ENTRY,) = re.findall(r"`READERS` in `blue/sources/data.py`: `(.*)`$", RECIPE, re.M)
COMMAND = [
    *("blue", f"--config={ROOT}/configs/base.py:tiny", "--config.stage=prepare"),
    *("--config.data.name=plays", "--config.data.eval_negatives=5"),
]


@pytest.fixture
def added(monkeypatch, tmp_path):
    """The recipe's two steps."""
    (tmp_path / PATH).write_text(MODULE)
    monkeypatch.setattr(readers, "__path__", [*readers.__path__, str(tmp_path)])
    steps = {}
    exec(IMPORT, steps)
    for name, read in eval(f"{{{ENTRY}}}", steps).items():
        monkeypatch.setitem(READERS, name, read)
    yield
    del sys.modules[f"blue.data.readers.{PATH.removesuffix('.py')}"]
    delattr(readers, PATH.removesuffix(".py"))


@pytest.fixture
def folder(tmp_path):
    """Forty listeners of twelve songs each out of thirty, and three bad rows."""
    folder = tmp_path / "log"
    folder.mkdir()
    songs = [f"s{n},Song {n},{1990 + n}" for n in range(30)]
    plays = [
        f"u{user:02},s{(7 * user + n) % 30},{1_700_000_000 + 86_400 * n},{n % 5 + 1}"
        for user in range(40)
        for n in range(12)
    ]
    plays += ["u00,s99,1700000000,3", "u00,s1,never,3", ",s1,1700000000,3"]
    (folder / "songs.csv").write_text("\n".join(["song,name,year", *songs]))
    (folder / "plays.csv").write_text("\n".join(["who,song,at,stars", *plays]))
    return folder


def test_the_recipe_has_the_promised_lines():
    assert lines_of(MODULE, IMPORT, ENTRY) == promised_lines("a data set")


def test_its_log_is_read_and_what_is_left_out_has_a_reason(added, folder):
    log = read_log(folder, "plays", title_template="{title} ({year})")
    assert log.history("u01")[0][:2] == ["Song 7 (1997)", "Song 8 (1998)"]
    assert log.history("u01")[1][:3] == [1.0, 2.0, 3.0]
    assert len(log.item) == 480 and len(log.item_ids) == 30
    assert log.rows_read == 30 + 483 and sum(log.rows_bad.values()) == 3


def test_stages_take_it_by_name(added, folder, tmp_path, capsys):
    path = f"--config.data.path={folder}"
    assert main([*COMMAND, path, f"--workdir={tmp_path}/run"]) == 0
    page = capsys.readouterr().out
    assert "480 interactions of 40 users with 30 items" in page


def test_without_the_recipe_there_is_no_such_data_set(folder, tmp_path, capsys):
    path = f"--config.data.path={folder}"
    assert main([*COMMAND, path, f"--workdir={tmp_path}/run"]) == 2
    assert "data.name is 'plays'; known are synthetic" in capsys.readouterr().err
