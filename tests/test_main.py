"""The command: its stages, its exit codes, its record."""

import json

import pytest

from blue.errors import NonFinite, Preempted, UserError
from blue.main import main
from configs import base
from tests.helpers.command import CONFIG, replace_stages, run


@pytest.fixture
def stages(monkeypatch):
    return replace_stages(monkeypatch)


# --- stages and exit codes


@pytest.mark.parametrize(
    "arguments, ran",
    [
        ([], ["profiler", "evaluate"]),
        (["--config.stages=encoder,evaluate"], ["encoder", "evaluate"]),
        (["--config.stages=('warm_start',)"], ["warm_start"]),
        (["--config.stage=encoder"], ["encoder"]),
    ],
)
def test_stages_run_in_order_or_one_alone(capsys, tmp_path, stages, arguments, ran):
    assert run(capsys, tmp_path, *arguments)[0] == 0
    assert stages.ran == ran


@pytest.mark.parametrize(
    "error, code, line",
    [
        (UserError("data.path: no file\n  events.csv"), 2, "data.path: no file events"),
        (NonFinite("3 updates in a row"), 70, "3 updates"),
        (Preempted("at step 7"), 75, "at step 7"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(capsys, tmp_path, stages, error, code, line):
    def fail(config, workdir):
        raise error

    stages.run = fail
    found, lines = run(capsys, tmp_path)
    assert found == code and line in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_a_bug_keeps_its_traceback(capsys, tmp_path, stages):
    def fail(config, workdir):
        raise ValueError("ours")

    stages.run = fail
    with pytest.raises(ValueError, match="ours"):
        run(capsys, tmp_path)


def test_a_workdir_that_cannot_be_is_one_line(capsys, tmp_path, stages):
    (tmp_path / "run").write_text("a file")
    code, lines = run(capsys, tmp_path)
    assert code == 2 and f"--workdir={tmp_path}/run" in lines[-1] and not stages.ran


def test_help_shows_itself_with_a_config_too(capsys):
    assert main(["blue", CONFIG, "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage:")


# --- config.json


def test_config_json_is_the_record_of_the_run(capsys, tmp_path, stages):
    run(capsys, tmp_path, "--config.group_size=3", "--config.mesh.tensor=2")
    found = json.loads((tmp_path / "run" / "config.json").read_text())
    expected = base.get_config()
    expected.group_size, expected.mesh.tensor = 3, 2
    assert found["config"] == json.loads(json.dumps(expected.to_dict()))
    assert found["mesh"] == {"data": 1, "fsdp": 4, "tensor": 2}
    assert found["devices"]["platform"] == "cpu" and found["devices"]["count"] == 8
    assert found["versions"]["jax"] == __import__("jax").__version__
    assert "git_commit" in found
    names = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert names == ["config.json", "heartbeat.json"]
