import importlib
import inspect
from pathlib import Path

import pytest

from blue.rewards import functions
from blue.workdir import settings
from configs import base

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("[!_]*.py"))
BOTH = [(name, arg) for name in NAMES for arg in (None, "tiny")]


def get_config(name, arg):
    return importlib.import_module(f"configs.{name}").get_config(arg)


@pytest.mark.parametrize("name, arg", BOTH)
def test_keys_are_those_of_base(name, arg):
    expected = [key for key, _ in settings.leaves(base.get_config())]
    assert [key for key, _ in settings.leaves(get_config(name, arg))] == expected


@pytest.mark.parametrize("name, arg", BOTH)
def test_values_are_possible_and_of_base_type(name, arg):
    config = get_config(name, arg)
    assert settings.check(config)
    defaults = dict(settings.leaves(base.get_config()))
    for key, value in settings.leaves(config):
        assert type(value) is type(defaults[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_every_field_can_be_set_on_the_command_line(name):
    """None and lists could not (ml_collections)."""
    config = get_config(name, None)
    argv = ["blue", f"--config={ROOT}/configs/{name}.py", "--workdir=x"]
    argv += [f"--config.{key}={value}" for key, value in settings.leaves(config)]
    assert settings.load(argv)[0].to_dict() == config.to_dict()


@pytest.mark.parametrize("name", NAMES)
def test_rewards_are_functions(name):
    for reward in get_config(name, None).rewards:
        assert inspect.isfunction(getattr(functions, reward, None)), reward


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_gives_the_command(name):
    doc = importlib.import_module(f"configs.{name}").__doc__
    assert doc and doc.partition("\n")[0].endswith(".")
    if name != "base":
        assert f"python -m blue.main --config=configs/{name}.py" in doc
