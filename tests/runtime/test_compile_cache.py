import json
import logging
import os
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import pytest

from blue.runtime import compile_cache
from configs import base

ROOT = Path(__file__).parents[2]
ONE_DEVICE = "--xla_force_host_platform_device_count=1"

# Two updates of a small profiler; every bit of the state after each of them.
SCRIPT = """
import hashlib, json, logging, sys
import jax, numpy as np
logging.basicConfig(level=logging.INFO)
from blue.runtime import compile_cache, programs
compile_cache.use(sys.argv[1])
from blue.models import qwen3
from blue.runtime.sharding import to_host
from tests.helpers.updates import batch_on, mesh_of, small
from tests.training.test_policy import make_run

def bits(tree):
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(to_host(tree))]
    return hashlib.sha256(b"".join(leaves)).hexdigest()

mesh, found = mesh_of((1, 1, 1)), []
_, state, update = make_run(small(qwen3.tiny_qwen3), mesh)
programs.wait()
for seed in range(2):
    state, info = update(state, {}, batch_on(mesh, seed))
    found.append(bits((state, info)))
print(json.dumps([found, programs.compiles["count"], compile_cache.hits["count"]]))
"""


def run(directory):
    """Bits of the steps, programs asked for, programs read; and stderr."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    mine |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    mine["XLA_FLAGS"] = f"{mine['XLA_FLAGS']} {ONE_DEVICE}"  # the last one counts
    command = [sys.executable, "-c", SCRIPT, str(directory)]
    done = subprocess.run(command, env=mine, capture_output=True, text=True, check=True)
    return *json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.slow
def test_a_second_run_compiles_nothing_and_computes_the_same_bits(tmp_path):
    bits, asked, read, _ = run(tmp_path)
    assert asked >= 3 and read == 0
    again, asked_again, read, told = run(tmp_path)
    assert again == bits and asked_again == read == asked
    assert "since the start 0 compiled" in told
    assert f"{read} read from the cache" in told
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("cpu-")

    # a write that was cut short, and an entry that is no program
    torn, other, *_ = sorted(folder.glob("*-cache"), key=lambda p: -p.stat().st_size)
    torn.write_bytes(torn.read_bytes()[:1000])
    other.write_bytes(zlib.compress(bytes(4) + b"no program" * 100))
    broken, _, read, told = run(tmp_path)
    assert broken == bits and read == asked - 2
    assert f"{torn}: cut short, removed" in told
    assert torn.stat().st_size > 1000  # written anew


@pytest.fixture
def no_directory():
    """jax without a cache, as it is when a run starts."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture
def one_device(monkeypatch):
    """Of the eight, for what asks for their number."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def test_several_cpu_devices_have_none(tmp_path, caplog, no_directory):
    with caplog.at_level(logging.INFO, "blue"):
        compile_cache.use(str(tmp_path))
    assert "not used on 8 CPU devices" in caplog.text
    assert not jax.config.jax_compilation_cache_dir and not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_written_is_one_warning(
    tmp_path, caplog, no_directory, one_device
):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING, "blue"):
        compile_cache.use(f"{tmp_path}/file/xla")
    (record,) = caplog.records
    assert "compile_cache=" in record.message and "not used" in record.message
    assert not jax.config.jax_compilation_cache_dir


def test_none_is_used_where_none_is_asked_for(no_directory):
    compile_cache.use("")
    assert not jax.config.jax_compilation_cache_dir
    assert base.get_config().compile_cache  # by default one is


def test_the_directory_of_jax_itself_comes_first(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    assert before  # conftest.py
    compile_cache.use(str(tmp_path))
    assert jax.config.jax_compilation_cache_dir == before
    assert not list(tmp_path.iterdir())


def test_each_entry_is_looked_at_once(tmp_path):
    whole = zlib.compress(b"program")
    for name, content in (("a", whole), ("b", whole[:-1]), ("c", b""), ("d", b"(\xb5")):
        (tmp_path / f"{name}-cache").write_bytes(content)
    compile_cache.remove_torn(tmp_path)
    assert {p.name for p in tmp_path.glob("*-cache")} == {"a-cache", "d-cache"}
    (tmp_path / "a-cache").write_bytes(whole[:-1])
    os.utime(tmp_path / "a-cache", (0, 0))
    compile_cache.remove_torn(tmp_path)
    assert (tmp_path / "a-cache").exists()
