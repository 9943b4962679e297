"""Encoders of others: sentence-transformers, or any function that the user provides.

They run on the host's cores, in a thread of their own while the devices work. A text
whose vector is still cached is not embedded again.
"""

import collections
import copy
import hashlib
import importlib
import importlib.util
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from blue.errors import UserError
from blue.inference.embed import Embed, TextEncoder

CACHED_TEXTS = 32_768  # the newest ones; 50 MB of vectors of 384
# Embedded at setup, so that errors show in the first second. A function whose vectors
# change from run to run (Python's salted `hash`) gets a new fingerprint.
PROBE = ("red running shoes", "", "The user likes quiet books about rivers.")


def function(spec: str, *, max_tokens: int, batch_size: int) -> TextEncoder:
    """The user's `module:function`, list of texts -> array [n d], as an encoder.

    The module may be a file in the current directory. Calls are sequential, with at
    most `batch_size` texts. Rows are scaled to unit length; a row of zeros stays.
    Tokens are counted as words, and the function itself cuts long texts. It may return
    None or NaN for a text. In training that profile has no reward; elsewhere it is an
    error.
    """
    call, source = _import_function(spec)
    width = check_finite(spec, PROBE, _rows(spec, call, PROBE)).shape[-1]

    def embed(texts: Sequence[str]) -> np.ndarray:
        out = np.zeros((len(texts), width), np.float32)
        for start in range(0, len(texts), batch_size):
            part = slice(start, start + batch_size)
            out[part] = _rows(spec, call, texts[part], width)
        return out

    digest = hashlib.sha256(f"{spec} {max_tokens}".encode() + source)
    digest.update(np.round(embed(PROBE), 4).tobytes())
    return _text_encoder(
        spec,
        embed,
        num_tokens=lambda text: len(text.split()),
        max_tokens=max_tokens,
        width=width,
        name=spec,
        fingerprint=digest.hexdigest(),
    )


def sentence_transformers(
    checkpoint: str, *, max_tokens: int, batch_size: int
) -> TextEncoder:
    """A sentence-transformers model on the CPU, in float32.

    checkpoint: its directory, or the name of an installed package that carries one.
    Nothing is downloaded and no code of a model is run. Texts are cut at the model's
    limit, or at `max_tokens` where that is less.
    """
    directory = _model_directory(checkpoint)
    try:
        library = importlib.import_module("sentence_transformers")
    except ImportError as error:
        raise UserError(
            f"encoder {checkpoint}: sentence-transformers cannot be imported ({error}):"
            " pip install 'blue-profiles[sentence-transformers]'"
        ) from error
    try:
        model = library.SentenceTransformer(
            str(directory),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"dtype": "float32"},
            processor_kwargs={"split_special_tokens": True},  # "[SEP]" in a title
        ).eval()
    except Exception as error:  # a broken directory may raise anything
        raise UserError(
            f"encoder {directory} is no sentence-transformers model: {_line(error)}"
        ) from error
    limit = model.max_seq_length or max_tokens
    max_tokens = int(min(limit, max_tokens))
    if limit != math.inf:  # static embeddings have no limit
        model.max_seq_length = max_tokens

    def embed(texts: Sequence[str]) -> np.ndarray:
        # sorts them by length, and keeps no gradients
        return model.encode(
            list(texts),
            batch_size=batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
        )

    digest = hashlib.sha256(str(max_tokens).encode())
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(directory)).encode() + b"\0")
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return _text_encoder(
        checkpoint,
        embed,
        num_tokens=_token_counter(model, checkpoint),
        max_tokens=max_tokens,
        width=_rows(checkpoint, embed, PROBE).shape[1],
        name=checkpoint,
        fingerprint=digest.hexdigest(),
        query_prompt=model.prompts.get("query"),
    )


# --- what they share


def cached(embed: Embed, *, width: int, entries: int) -> Embed:
    """`embed` with a cache of the `entries` texts that were used last."""
    newest: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()

    def lookup(texts: Sequence[str]) -> np.ndarray:
        unique = list(dict.fromkeys(texts))
        unknown = [text for text in unique if text not in newest]
        position = {text: i for i, text in enumerate(unknown)}
        vectors = np.asarray(embed(unknown) if unknown else [], np.float32)
        out = np.zeros((len(texts), width), np.float32)
        for row, text in enumerate(texts):
            known = text not in position
            out[row] = newest[text] if known else vectors[position[text]]
        for text in unique[-entries:]:
            if text in position:
                vector = vectors[position[text]]
                if not np.isfinite(vector).all():
                    continue  # not cached: it may succeed later
                newest[text] = vector.copy()  # a view would keep all rows in memory
            newest.move_to_end(text)
        while len(newest) > entries:
            newest.popitem(last=False)
        return out

    return lookup


def check_finite(spec: str, texts: Sequence[str], vectors: np.ndarray) -> np.ndarray:
    """The vectors, all of them finite."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise UserError(
            f"encoder {spec} returned numbers that are not finite for {len(bad)} of "
            f"{len(texts)} texts, the first is {texts[bad[0]][:80]!r}"
        )
    return vectors


def _text_encoder(spec: str, embed: Embed, *, width: int, **facts: Any) -> TextEncoder:
    # One worker, which is waited for before anything else is embedded: cache and model
    # are never used by two threads at once.
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
    remembered = cached(embed, width=width, entries=CACHED_TEXTS)
    return TextEncoder(
        embed=lambda texts: check_finite(spec, texts, remembered(texts)),
        start=lambda texts: worker.submit(remembered, texts).result,
        width=width,
        **facts,
    )


def _line(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


# --- a function


def _import_function(spec: str) -> tuple[Callable[[list[str]], Any], bytes]:
    """The function, and the source of its module if it has a file."""
    name, colon, attribute = spec.partition(":")
    if not (name and colon and attribute):
        raise UserError(f"encoder {spec!r} must be of the form module:function")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(name)
    except Exception as error:  # importing a module may raise anything
        raise UserError(
            f"encoder {spec}: module {name} cannot be imported, here or from the "
            f"current directory ({_line(error)})"
        ) from error
    finally:
        sys.path.remove(here)
    call = getattr(module, attribute, None)
    if not callable(call):
        known = [k for k, v in vars(module).items() if callable(v) and k[0] != "_"]
        raise UserError(
            f"encoder {spec}: {name} has no function {attribute}; it has "
            f"{', '.join(known[:10]) or 'none'}"
        )
    file = getattr(module, "__file__", None)
    return call, Path(file).read_bytes() if file else b""


def _rows(
    spec: str,
    call: Callable[[list[str]], Any],
    texts: Sequence[str],
    width: int | None = None,
) -> np.ndarray:
    """Unit vectors [n d] from the result of an arbitrary function, checked.

    NaN where it returned None or a number that is not finite.
    """
    try:
        out = call(list(texts))
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}, line {frame.lineno}"
        raise UserError(f"encoder {spec} raised {_line(error)} ({where})") from error
    if width and isinstance(out, list | tuple):
        out = [np.full(width, np.nan) if row is None else row for row in out]
    try:
        vectors = np.asarray(out, np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"encoder {spec} returned {type(out).__name__}, which is no array of "
            f"numbers: it must return [n, d], a row for each of n texts"
        ) from error
    n, d = len(texts), width or "d"
    if (
        vectors.ndim != 2
        or len(vectors) != n
        or vectors.shape[1] != (width or max(1, vectors.shape[1]))
    ):
        raise UserError(
            f"encoder {spec} returned an array of shape {list(vectors.shape)} for {n} "
            f"texts: it must return [{n}, {d}], a row a text"
        )
    whole = np.isfinite(vectors).all(axis=1, keepdims=True)
    vectors = np.where(whole, vectors, np.float32(np.nan))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths == 0, 1.0, lengths)


# --- sentence-transformers


def _model_directory(checkpoint: str) -> Path:
    """The directory, or the one inside the installed package of that name."""
    directory = Path(checkpoint)
    if directory.is_dir():
        return directory
    spec = importlib.util.find_spec(checkpoint) if checkpoint.isidentifier() else None
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        found = sorted(Path(folder).rglob("modules.json"))
        if found:
            return found[0].parent
    raise UserError(
        f"encoder {checkpoint!r} is neither a directory nor an installed package with "
        "a sentence-transformers model (modules.json) in it; nothing is downloaded"
    )


def _token_counter(model: Any, checkpoint: str) -> Callable[[str], int]:
    """Counts the tokens of an uncut text. Uses a copy: a tokenizer is not
    thread-safe."""
    backend = getattr(model.tokenizer, "backend_tokenizer", model.tokenizer)
    if not hasattr(backend, "no_truncation"):
        raise UserError(
            f"encoder {checkpoint}: its tokenizer {type(model.tokenizer).__name__} is "
            "not supported, only fast ones (tokenizer.json)"
        )
    counter = copy.deepcopy(backend)
    counter.encode_special_tokens = True
    counter.no_truncation()
    counter.no_padding()
    return lambda text: len(counter.encode(text).ids)
