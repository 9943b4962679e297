"""A run is opened once: its devices, its log, its examples when they are asked for."""

import pytest

from blue.errors import UserError
from blue.sources.open_run import mesh_of, open_run
from configs import quickstart


def test_examples_are_prepared_when_they_are_first_asked_for(tmp_path):
    config = quickstart.get_config("tiny")
    run = open_run(config, str(tmp_path))
    assert run.log.name == "synthetic" and not list(tmp_path.iterdir())
    examples = run.examples
    assert examples is run.examples
    (made,) = (tmp_path / "data").iterdir()
    assert made.name == examples.fingerprint
    again = open_run(config, str(tmp_path))
    assert again.examples.fingerprint == examples.fingerprint


def test_the_mesh_is_that_of_the_config():
    config = quickstart.get_config("tiny")
    config.mesh.update(data=2, fsdp=-1, tensor=2)
    assert dict(mesh_of(config).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    config.mesh.data = 3
    with pytest.raises(UserError, match="8 devices"):
        mesh_of(config)
