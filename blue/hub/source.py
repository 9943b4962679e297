"""Where a checkpoint comes from: a local directory, gs://, or the Hugging Face Hub.

From the hub only safetensors, JSON, tokenizer and licence files are downloaded, never
pickled weights or code. The token is that of the environment or login.
"""

import functools
import logging
import os
import re
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
from etils import epath
from huggingface_hub import errors

from blue.errors import UserError

logger = logging.getLogger("blue")

TOKENIZER_FILES = ("*.json", "*.jinja", "*tokenizer.model")
LICENCE_FILES = ("LICENSE*", "NOTICE*", "USE_POLICY*")  # to be copied with weights
PATTERNS = (
    "*.safetensors",
    *TOKENIZER_FILES,
    "1_Pooling/*.json",
    *LICENCE_FILES,
    "README.md",
)
OTHER_FORMATS = ("onnx/*", "openvino/*", "original/*")
_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", re.ASCII)


class Source(NamedTuple):
    """The source of a model's first weights; all empty for random ones."""

    checkpoint: str = ""  # as given: a directory, gs://..., owner/name[@revision]
    commit: str = ""  # of the hub
    directory: str = ""  # of its files


def fetch(checkpoint: str, field: str, *, weights: bool = True) -> Source:
    """The files of `checkpoint`, downloaded if it is a hub id.

    A directory that exists wins over a hub id of the same name. Every process calls it.

    Args:
        field: the config field, for messages.
        weights: False for a tokenizer alone.

    Raises:
        UserError: it is neither; or the hub does not have it or give it.
    """
    subject = f"{field}={checkpoint}"
    if os.path.isdir(checkpoint):
        return Source(checkpoint, "", checkpoint)
    if "://" in checkpoint:
        try:
            found = epath.Path(checkpoint).exists()
        except ImportError as error:  # of the library for gs://
            raise UserError(
                f"{subject}: {_line(error)}: pip install 'blue-profiles[gcs]'"
            ) from error
        if not found:
            raise UserError(f"{subject} is not there")
        return Source(checkpoint, "", checkpoint)
    if os.path.exists(checkpoint):
        raise UserError(f"{subject} is a file; name the directory that holds it")
    match = _HUB_ID.fullmatch(checkpoint)
    if match is None:
        raise UserError(
            f"{subject} is no directory here, and no hub id (owner/name or "
            "owner/name@revision)"
        )
    try:
        directory = _download(match[1], match[2], weights)
    except (OSError, ValueError, errors.HTTPError) as error:  # pyright: ignore
        raise UserError(f"{subject} {_reason(error, match[1])}") from error
    commit = Path(directory).name
    logger.info("%s: commit %s, in %s", subject, commit, directory)
    return Source(checkpoint, commit, directory)


@functools.cache  # one commit a process
def _download(repo: str, revision: str | None, weights: bool) -> str:
    return huggingface_hub.snapshot_download(
        repo,
        revision=revision,
        allow_patterns=list(PATTERNS if weights else TOKENIZER_FILES),
        ignore_patterns=list(OTHER_FORMATS),
    )


def _reason(error: Exception, repo: str) -> str:
    """Why the download failed, and what to do."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    log_in = "log in with `hf auth login` or HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return "is on the hub, but has no such revision"
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return (
            f"is gated: accept the licence at https://huggingface.co/{repo} and "
            f"{log_in}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "is no directory here, and the hub shows no repository of that name; for "
            f"a private one {log_in}"
        )
    if status == 401:
        return f"was refused by the hub: {log_in}"
    if isinstance(error, errors.HFValidationError):
        return f"is no directory here, and no valid hub id: {_line(error)}"
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return (
            "is no directory here, is not (all) in the hub's local cache, and the hub "
            "cannot be reached (no network, or HF_HUB_OFFLINE is set)"
        )
    return f"cannot be fetched from the hub: {_line(error)}"


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
