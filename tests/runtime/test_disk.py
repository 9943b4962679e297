"""Full, read-only, vanished: one line with the path and what to do."""

import errno
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from blue import main
from blue.errors import UserError
from blue.runtime import disk
from blue.workdir.stages import STAGES, Stage
from configs import quickstart


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is full")
def test_a_full_disk_is_one_line(tmp_path):
    with (
        pytest.raises(UserError) as caught,
        disk.disk_errors_in_one_line(str(tmp_path)),
    ):
        with open("/dev/full", "w") as file:
            file.write("a line of metrics")
    said = str(caught.value)
    assert str(tmp_path) in said and "No space left" in said and "make room" in said
    assert "\n" not in said


def test_a_disk_that_cannot_be_written_names_the_file(tmp_path):
    error = OSError(errno.EROFS, "Read-only file system", "run/metrics.jsonl")
    with pytest.raises(UserError, match="run/metrics.jsonl: Read-only file system"):
        with disk.disk_errors_in_one_line(str(tmp_path)):
            raise error


def test_other_errors_of_files_keep_their_traceback(tmp_path):
    with pytest.raises(FileNotFoundError), disk.disk_errors_in_one_line(str(tmp_path)):
        (tmp_path / "a file that a bug forgot").read_text()


@pytest.fixture
def vanishing(monkeypatch):
    """A stage under which the workdir disappears."""

    def run(config, workdir):
        shutil.rmtree(workdir)
        with open(f"{workdir}/metrics.jsonl", "a") as file:
            file.write("{}")

    stage = SimpleNamespace(run=run)
    monkeypatch.setitem(sys.modules, "blue.stages.vanishing", stage)
    loses = Stage("vanishing", "loses its workdir")
    monkeypatch.setitem(STAGES, "evaluate", loses)


def test_a_vanished_workdir_is_exit_code_2(tmp_path, vanishing, capsys):
    path = Path(quickstart.__file__)
    code = main.main(
        ["", f"--config={path}:tiny", f"--workdir={tmp_path / 'run'}"]
        + ["--config.stage=evaluate"]
    )
    said = capsys.readouterr().err.splitlines()
    assert code == 2
    assert "metrics.jsonl: No such file" in said[-1] and "bring it back" in said[-1]
    assert not [line for line in said if "Traceback" in line]
