import os
import subprocess
import sys

import pytest

from blue.runtime import xla_flags
from blue.runtime.xla_flags import FLAGS, VARIABLE


@pytest.mark.parametrize("platform", ["gpu"])
def test_a_flag_of_the_user_keeps_its_value(platform):
    first, *others = (flag.name for flag in FLAGS[platform])
    environment = {VARIABLE[platform]: f"--mine=1 {first}=false"}
    new = xla_flags.set_for(platform, environment)
    given = environment[VARIABLE[platform]].split()
    assert given == ["--mine=1", f"{first}=false", *new]
    assert [flag.partition("=")[0] for flag in new] == others
    assert not xla_flags.set_for(platform, environment)  # a second time: none


def test_a_cpu_gets_none():
    environment = {"JAX_PLATFORMS": "cpu"}
    assert xla_flags.platform_of(environment) == ""
    assert not xla_flags.set_for("", environment)
    assert environment == {"JAX_PLATFORMS": "cpu"}


def test_the_platform_is_what_jax_is_going_to_find(monkeypatch):
    installed = {"tpu": "numpy", "gpu": "scipy"}
    monkeypatch.setattr(
        xla_flags, "PLUGINS", {k: ("no-such", v) for k, v in installed.items()}
    )
    for asked, found in (("", "tpu"), ("tpu", "tpu"), ("cuda", "gpu"), ("gpu", "gpu")):
        assert xla_flags.platform_of({"JAX_PLATFORMS": asked}) == found
    monkeypatch.setattr(xla_flags, "PLUGINS", {"gpu": ("no-such",)})
    assert xla_flags.platform_of({}) == ""


def test_xla_knows_the_gpu_flags():
    """It ends a process with one that it does not know."""
    ask = [sys.executable, "-c", "import jax; jax.devices()"]
    for more in ("", " --xla_gpu_no_such_flag=true"):
        environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
        xla_flags.set_for("gpu", environment)
        environment["XLA_FLAGS"] += more
        assert "latency" in environment["XLA_FLAGS"]
        done = subprocess.run(ask, env=environment, capture_output=True)
        assert (done.returncode == 0) is not bool(more)
