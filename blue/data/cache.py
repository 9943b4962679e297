"""Named arrays in a directory: written whole or not at all, checked when read."""

import hashlib
import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from blue.runtime import files

logger = logging.getLogger("blue")


def read_arrays(
    directory: Path,
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Arrays and notes of `write_arrays`; None if missing or damaged."""
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
    """Writes arrays as .npy, and `notes` (plain JSON) in manifest.json.

    The directory appears complete or not at all and replaces a damaged one. It is
    private, because it has histories. Its bytes depend only on the arguments.
    """
    digests = {}
    with files.whole_directory(directory, private=True) as draft:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            (draft / f"{name}.npy").write_bytes(content.getvalue())
            digests[name] = hashlib.sha256(content.getvalue()).hexdigest()
        facts = {"notes": notes, "sha256": digests}
        manifest = json.dumps(facts, indent=1, sort_keys=True)
        (draft / "manifest.json").write_text(manifest + "\n", "utf-8")
