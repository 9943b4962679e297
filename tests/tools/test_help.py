"""Every tool that a README names tells how it is called."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py"))
MODULES = ("blue.data.download", "blue.training.replay")


def run(name):
    if name in MODULES:
        sys.modules.pop(name, None)  # else runpy warns
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")


@pytest.mark.parametrize("name", [*TOOLS, *MODULES])
def test_help_is_printed(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as end:
        run(name)
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: ") and "--help" in told
