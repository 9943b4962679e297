"""Every test runs on eight CPU devices, without network, with strict ranks."""

import gc
import os
from importlib.metadata import version

import pytest

# Tests are mostly compilation: without optimisation it takes half as long.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
FLAGS += " --xla_cpu_parallel_codegen_split_count=1"  # splitting costs an eighth
if version("jaxlib").startswith("0.10."):  # later ones do not know the flag
    FLAGS += " --xla_cpu_use_fusion_emitters=false"

# Files whose every test compares with torch.
PARITY = {"test_export_parity.py", "test_parity.py", "test_peft.py"}


def pytest_configure(config):
    """Before the first import of jax; subprocesses of tests inherit it all."""
    # Tracing makes so many objects that by default a tenth of the time goes into
    # looking through them all, again and again.
    gc.set_threshold(200_000, 20, 100)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["HF_HUB_OFFLINE"] = "1"
    # The second run of the tests, and subprocesses, need not compile again.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(config.cache.mkdir("jax"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

    import jax

    jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_ignore_collect(collection_path, config):
    """Passes over parity's files where they do not run: to import torch is slow."""
    deselected = "not parity" in config.option.markexpr
    return True if deselected and collection_path.name in PARITY else None


def pytest_collection_finish():
    """What was imported stays: it need not be looked through for garbage again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish():
    """Nor need anything be at the end, when pytest and Python collect several times."""
    gc.disable()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """A process of pytest-xdist has told everything by now: it ends at once.

    To take apart thousands of programs one by one takes many seconds.
    """
    gc.freeze()
    if hasattr(config, "workerinput"):
        os._exit(0)
