"""config.json: the config of a run, with versions, commit and devices.

Secrets are not written, neither there nor to the log.
"""

import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from blue.errors import UserError
from blue.runtime import files
from blue.workdir import renamed

ROOT = Path(__file__).resolve().parents[2]  # of the clone
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    "numpy",
    "ml-collections",
)


def redacted(config: ConfigDict) -> dict[str, Any]:
    """The config as plain data, without what looks like a secret."""
    return {key: _redact(key, value) for key, value in config.to_dict().items()}


def _redact(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _redact(k, v) for k, v in value.items()}
    if not isinstance(value, str) or not value:
        return value
    # Whole words: tokenizer and max_tokens are no secrets.
    if {"token", "secret", "password", "key"} & set(key.lower().split("_")):
        return "[redacted]"
    value = re.sub(r"\bhf_\w{16,}", "[redacted]", value)
    return re.sub(r"(\w://)[^/\s@]+@", r"\1[redacted]@", value)


def save(config: ConfigDict, workdir: str) -> None:
    """Write config.json: config, versions, commit, devices and mesh."""
    devices = jax.devices()
    record = {
        "config": redacted(config),
        "versions": _versions(),
        "git_commit": _git_commit(),
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "mesh": _mesh(config.to_dict()["mesh"], len(devices)),
    }
    if jax.process_index() == 0:
        path = Path(workdir) / "config.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(path, json.dumps(record, indent=2) + "\n")
        except OSError as error:
            raise UserError(
                f"--workdir={workdir}: cannot write config.json there: "
                f"{error.strerror or error}"
            ) from error


def load(workdir: str | os.PathLike[str]) -> ConfigDict:
    """The config recorded by the run in `workdir`, with present field names.

    Raises `UserError` where there is none.
    """
    path = Path(workdir) / "config.json"
    try:
        recorded = json.loads(path.read_text("utf-8"))["config"]
        return ConfigDict(renamed.with_new_names(recorded))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{path} is no config of a run: {reason}") from None


def code() -> dict[str, str | None]:
    """Version and commit of this code."""
    return {"version": _versions()["blue-profiles"], "git_commit": _git_commit()}


def _mesh(sizes: dict[str, int], devices: int) -> dict[str, int]:
    """Sizes of the axes, with -1 replaced by the remaining devices."""
    fixed = math.prod(size for size in sizes.values() if size != -1)
    return {a: max(devices // fixed, 1) if n == -1 else n for a, n in sizes.items()}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("blue-profiles", *PACKAGES):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _git_commit() -> str | None:
    """The commit of this clone, "+" for local changes; None outside of a clone."""
    if not (ROOT / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:
        commit = git("rev-parse", "--verify", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except OSError:  # no git on this machine
        return None
    return f"{commit}{'+' if changed else ''}" if commit else None
