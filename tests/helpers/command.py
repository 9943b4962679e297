"""The command, with stages that do nothing."""

import sys
from pathlib import Path
from types import SimpleNamespace

from blue.main import main
from blue.workdir.stages import STAGES

ROOT = Path(__file__).parents[2]

CONFIG = f"--config={ROOT}/configs/base.py"


def replace_stages(monkeypatch):
    """The stages replaced by one function, `stages.run`; the names they ran under."""
    fake = SimpleNamespace(run=lambda config, workdir: None, ran=[])

    def module(name):
        def run(config, workdir):
            fake.ran.append(name)
            fake.run(config, workdir)

        return SimpleNamespace(run=run)

    for name, stage in STAGES.items():
        monkeypatch.setitem(sys.modules, f"blue.stages.{stage.module}", module(name))
    return fake


def run(capsys, tmp_path, *arguments, config=CONFIG):
    """The exit code and the lines on stderr."""
    code = main(["blue", config, f"--workdir={tmp_path}/run", *arguments])
    return code, capsys.readouterr().err.splitlines()
