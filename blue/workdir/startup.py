"""Checks before anything is loaded: the devices are as expected, on every host.

A run that falls back to the CPU wastes days before anybody notices. Hosts that run
different code or settings hang, or compute wrong results.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from blue.errors import UserError
from blue.runtime.xla_flags import is_installed
from blue.workdir import record

logger = logging.getLogger("blue")
PLUGINS = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin")
VARIABLES = ("TPU_NAME", "TPU_WORKER_ID", "NVIDIA_VISIBLE_DEVICES")
DEVICE_FILES = ("/dev/accel0", "/dev/vfio/0", "/dev/nvidia0", "/dev/kfd")


def check(
    fields: Mapping[str, Any], *, platform: str, num_devices: int, num_processes: int
) -> None:
    """Checks that devices are as expected ("" or 0: any), and code and `fields` equal.

    fields: of the config, by dotted name. Raises `UserError`, in every process if the
    processes differ.
    """
    try:
        found = jax.default_backend()
    except RuntimeError as error:  # JAX_PLATFORMS names a missing platform
        reason = str(error).partition("\n")[0]
        raise UserError(f"jax finds no device: {reason}") from None
    check_hosts_agree(
        {"code": record.code(), "the names of config fields": sorted(fields)}
    )
    check_hosts_agree({f"config field {name}": value for name, value in fields.items()})
    if platform and found != platform:
        raise UserError(
            f"platform={platform} is asked for and jax found {found} "
            f"({jax.devices()[0].device_kind}): is the extra for it installed, and "
            "the device free?"
        )
    for name, expected, count in (
        ("num_devices", num_devices, jax.device_count()),
        ("num_processes", num_processes, jax.process_count()),
    ):
        if expected and expected != count:
            raise UserError(f"{name}={expected} is asked for and jax found {count}")
    if found == "cpu" and not platform:
        signs = accelerator_signs(os.environ, DEVICE_FILES)
        if signs:
            logger.warning(
                "running on the CPU, though there are signs of an accelerator (%s); "
                "platform=tpu or gpu makes that an error, platform=cpu is silent",
                ", ".join(signs),
            )


def process() -> int | None:
    """The index of this process; None if it is the only one."""
    return jax.process_index() if jax.process_count() > 1 else None


def accelerator_signs(
    environment: Mapping[str, str], device_files: Iterable[str]
) -> list[str]:
    """Signs of an accelerator on this machine; empty if the CPU was requested.

    An installed plugin, a variable of a cloud, a device file.
    """
    asked = environment.get("JAX_PLATFORMS", "").split(",")[0]
    if asked == "cpu" or environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    signs = [name for name in PLUGINS if is_installed(name)]
    void = ("", "none", "void")  # values in containers without a GPU
    signs += [name for name in VARIABLES if environment.get(name, "") not in void]
    return signs + [file for file in device_files if Path(file).exists()]


def check_hosts_agree(facts: Mapping[str, Any]) -> None:
    """Raises the same `UserError` in all processes where one of `facts` differs.

    facts: name -> JSON, the same names everywhere. Called by every process.
    """
    if jax.process_count() == 1:
        return
    mine = np.stack([_digest(value) for value in facts.values()])
    everyone = np.asarray(multihost_utils.process_allgather(mine))
    differs = (everyone != everyone[:1]).any(axis=(0, 2))
    if differs.any():
        index = jax.process_index()
        names = [
            f"{name} (here {json.dumps(value, default=str)[:200]})"
            for (name, value), wrong in zip(facts.items(), differs, strict=True)
            if wrong
        ]
        raise UserError(
            f"the {jax.process_count()} processes differ in {'; '.join(names[:5])}"
            f"{' and more' if len(names) > 5 else ''}, here being process {index}: "
            "start all of them with the same command, code and data"
        )


def _digest(value: Any) -> np.ndarray:
    """A hash of a value: 32 numbers, to compare between hosts."""
    text = json.dumps(value, sort_keys=True, default=str)
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32)
