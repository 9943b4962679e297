import logging

import pytest

from blue.errors import UserError
from blue.main import main
from blue.workdir import startup
from configs import base
from tests.helpers.processes import ROOT, end, start_two

ANY = {"platform": "", "num_devices": 0, "num_processes": 0}


def test_what_was_found_may_be_asked_for():
    startup.check({"lr": 1e-6}, **ANY)
    startup.check({}, platform="cpu", num_devices=8, num_processes=1)
    startup.check_hosts_agree({"data": "abc"})
    assert startup.process() is None


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("platform", "tpu", "platform=tpu is asked for and jax found cpu"),
        ("num_devices", 16, "num_devices=16 is asked for and jax found 8"),
        ("num_processes", 4, "num_processes=4 is asked for and jax found 1"),
    ],
)
def test_other_devices_than_meant_are_an_error(field, value, words):
    with pytest.raises(UserError, match=words):
        startup.check({}, **ANY | {field: value})


def test_the_command_ends_with_2_before_anything_is_written(tmp_path, capsys):
    config = f"--config={ROOT}/configs/base.py"
    arguments = [config, f"--workdir={tmp_path}/run", "--config.platform=gpu"]
    assert main(["blue", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: platform=gpu")
    assert not (tmp_path / "run").exists()


def test_signs_of_an_accelerator(tmp_path, monkeypatch):
    device = tmp_path / "accel0"
    monkeypatch.setattr(startup, "PLUGINS", ("numpy", "no-such-plugin"))
    assert startup.accelerator_signs({}, [str(device)]) == ["numpy"]
    device.touch()
    found = startup.accelerator_signs({"TPU_NAME": "a"}, [str(device)])
    assert found == ["numpy", "TPU_NAME", str(device)]
    assert not startup.accelerator_signs({"JAX_PLATFORMS": "cpu"}, [str(device)])


def test_a_silent_cpu_is_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(startup, "PLUGINS", ("numpy",))
    monkeypatch.delenv("JAX_PLATFORMS")
    with caplog.at_level(logging.WARNING, "blue"):
        startup.check({}, **ANY | {"platform": "cpu"})
        assert not caplog.records
        startup.check({}, **ANY)
    assert "signs of an accelerator (numpy)" in caplog.text


def test_the_defaults_ask_for_nothing():
    config = base.get_config()
    assert all(config[name] == value for name, value in ANY.items())


TWO = """
from blue.workdir import startup
from blue.main import main
from blue.errors import UserError
if sys.argv[2] == "data":
    startup.check_hosts_agree({"data": "same"})
    try:
        startup.check_hosts_agree({"names": 1, "data": jax.process_index()})
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
lr = ["1e-3", "1e-4"][jax.process_index()]
sys.exit(main(["blue", "--config=" + sys.argv[3], "--workdir=" + sys.argv[4],
               "--config.lr=" + lr]))
"""


def test_processes_with_different_configs_all_stop_with_2(tmp_path):
    config = ROOT / "configs/base.py"
    two = start_two(TWO, "config", config, tmp_path / "run")
    for index, process in enumerate(two):
        code, errors = end(process)
        assert code == 2, errors
        (line,) = [s for s in errors.splitlines() if s.startswith("error: ")]
        assert f"differ in config field lr (here {['0.001', '0.0001'][index]})" in line
        assert f"process {index}" in line
    assert not (tmp_path / "run").exists()


def test_processes_with_different_data_all_stop():
    for process in start_two(TWO, "data"):
        code, errors = end(process)
        assert code == 2 and "differ in data (here " in errors, errors
