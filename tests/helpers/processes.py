"""Scripts in processes of their own, one or two that know of each other."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOGETHER = """
import sys, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(
    "127.0.0.1:{port}", 2, int(sys.argv[1]), heartbeat_timeout_seconds=10,
    shutdown_timeout_seconds=10,
)
"""


def start(script, *arguments, stdin=False):
    """A process of `script` with two CPU devices; its output is text."""
    flags = "--xla_force_host_platform_device_count=2"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(script, *arguments):
    """Two processes over jax.distributed; each gets its index before `arguments`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = TOGETHER.format(port=port) + script
    return [start(script, index, *arguments) for index in range(2)]


def wait_for(process, line):
    """Reads its output up to the line that begins with `line`."""
    seen = []
    for found in process.stdout:
        seen.append(found)
        if found.startswith(line):
            return
    raise AssertionError(f"no {line!r}: {seen} {process.stderr.read()}")


def end(process):
    """Its exit code and stderr."""
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors
