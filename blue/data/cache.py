"""Named arrays in a directory: written whole or not at all, checked when read."""

import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger("blue")


def read_arrays(
    directory: Path,
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Arrays and notes that `write_arrays` left there; None if missing or damaged."""
    if not directory.exists():
        return None
    try:
        manifest = json.loads((directory / "manifest.json").read_text("utf-8"))
        arrays = {}
        for name, digest in manifest["sha256"].items():
            content = (directory / f"{name}.npy").read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                raise ValueError(f"{name}.npy has changed")
            arrays[name] = np.load(io.BytesIO(content), allow_pickle=False)
        return arrays, manifest["notes"]
    except (OSError, ValueError, KeyError) as error:
        logger.warning("%s is damaged (%s) and will be made again", directory, error)
        return None


def write_arrays(
    directory: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any]
) -> None:
    """Arrays as .npy and `notes` (plain JSON) in manifest.json.

    The directory appears complete or not at all, and its bytes depend on the arguments
    alone.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft", dir=directory.parent))
    digests = {}
    for name, array in arrays.items():
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        (draft / f"{name}.npy").write_bytes(content.getvalue())
        digests[name] = hashlib.sha256(content.getvalue()).hexdigest()
    manifest = json.dumps({"notes": notes, "sha256": digests}, indent=1, sort_keys=True)
    (draft / "manifest.json").write_text(manifest + "\n", "utf-8")
    try:
        os.rename(draft, directory)
    except OSError:  # it exists: damaged, or another process wrote the same meanwhile
        if read_arrays(directory) is not None:
            shutil.rmtree(draft)
            return
        shutil.rmtree(directory)
        os.rename(draft, directory)
