"""The text of --help."""

import inspect
import re
from pathlib import Path

from blue.main import main
from blue.workdir import settings
from blue.workdir.stages import STAGES
from configs import base

ROOT = Path(__file__).parents[2]

# --- help


def test_help_names_every_stage_config_and_field_with_its_default(capsys):
    assert main(["blue", "--help"]) == 0
    shown = capsys.readouterr().out
    lines = [line.strip() for line in shown.splitlines()]
    assert lines[0].startswith("usage: python -m blue.main --config=")
    for name in STAGES:
        assert any(line.split()[:1] == [name] for line in lines)
    for path in (ROOT / "configs").glob("[!_]*.py"):
        assert f"configs/{path.name}" in shown
    for name, value in settings.leaves(base.get_config()):
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        (line,) = [line for line in lines if line.startswith(f"--config.{name}=")]
        flag = line.partition("=")[2]
        assert flag.startswith((text, f'"{text}"'))
    assert "users a step, global [P]" in shown
    assert "one a step: history_profile [P]" in shown  # a comment of two lines


def test_help_has_every_comment_of_base(capsys):
    """A comment that a formatter moves into a field's value would be lost."""
    source = inspect.getsource(base.get_config)
    comments = re.findall(r"# +(?!---)(.*)$", source, re.M)
    assert len(comments) > 150 and main(["blue", "--help"]) == 0
    shown = capsys.readouterr().out
    missing = [comment for comment in comments if comment.strip() not in shown]
    assert not missing
