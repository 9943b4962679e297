"""Reads and writes the directory layout of sentence-transformers, for encoders.

A model there is a chain of modules, modules.json. Ours is a decoder whose last token is
pooled and normalised: any other chain is refused.
"""

import json
from typing import Any, NamedTuple

from etils import epath

from blue.errors import UserError

CHAIN = ("Transformer", "Pooling", "Normalize")
MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
LENGTHS = "sentence_bert_config.json"
POOLINGS = (  # of 1_Pooling/config.json, as releases before 6 wrote and all read them
    "cls_token",
    "mean_tokens",
    "max_tokens",
    "mean_sqrt_len_tokens",
    "weightedmean_tokens",
    "lasttoken",
)


class Layout(NamedTuple):
    """The settings of a checkpoint's layout."""

    transformer: str  # directory of config.json, the weights and the tokenizer
    query_prompt: str | None  # before a query; None: the checkpoint does not say
    document_prompt: str  # before an item's text; empty: none
    max_tokens: int | None  # longest text; None: it does not say


def read(directory: epath.PathLike) -> Layout:
    """The layout of an encoder's directory; a plain model lacks the files.

    Whether the chain ends with Normalize does not matter: our vectors always have unit
    length.

    Raises:
        UserError: a module or a pooling that our encoder is not.
    """
    root = epath.Path(directory)
    config = _read(root / PROMPTS, {})
    prompts = config.get("prompts") or {}
    query = prompts.get("query") if isinstance(prompts, dict) else None
    if not isinstance(query, str | None):
        raise UserError(f"{root / PROMPTS}: prompts.query is {query!r}; must be text")
    document = "" if query is None else str(prompts.get("document") or "")
    if not (root / MODULES).exists():
        return Layout(str(directory), query, document, None)
    paths = _chain(root)
    _check_pooling(root / paths["Pooling"] / "config.json")
    transformer = root / paths["Transformer"]
    lengths = _read(transformer / LENGTHS, {})
    if lengths.get("do_lower_case"):
        raise UserError(f"{transformer / LENGTHS}: do_lower_case is not supported")
    limit = lengths.get("max_seq_length")
    limit = limit if type(limit) is int else None
    return Layout(str(transformer), query, document, limit)


def _chain(root: epath.Path) -> dict[str, str]:
    """Kind of module -> its sub-folder."""
    path = root / MODULES
    problem = f"{path}: %s; must be Transformer, Pooling and perhaps Normalize"
    modules = _read(path, [])
    paths: dict[str, str] = {}
    for module in modules:
        kind, folder = module.get("type"), module.get("path")
        name = str(kind).rpartition(".")[2]
        ours = str(kind).startswith("sentence_transformers.") and name in CHAIN
        if not ours or name in paths:
            raise UserError(problem % f"module {len(paths)} has type {kind!r}")
        if not isinstance(folder, str) or folder.startswith("/") or ".." in folder:
            raise UserError(f"{path}: path is {folder!r}; must be a sub-folder")
        paths[name] = folder
    if tuple(paths) not in (CHAIN, CHAIN[:2]):
        raise UserError(problem % f"its modules are {', '.join(paths) or 'none'}")
    return paths


def _check_pooling(path: epath.Path) -> None:
    """Raises `UserError` unless only the last token is pooled; old and new form."""
    config = _read(path, {})
    if "pooling_mode" in config:
        found = config["pooling_mode"]
        if found not in ("lasttoken", ["lasttoken"]):
            raise UserError(f"{path}: pooling_mode is {found!r}; must be 'lasttoken'")
        return
    for pooling in POOLINGS:
        key, expected = f"pooling_mode_{pooling}", pooling == "lasttoken"
        if bool(config.get(key)) != expected:
            raise UserError(
                f"{path}: {key} is {config.get(key)!r}; must be {json.dumps(expected)}:"
                " the last token alone is pooled here"
            )


def write(
    directory: epath.PathLike, *, width: int, max_tokens: int, query_prompt: str
) -> None:
    """Adds the files of sentence-transformers to a model's directory.

    In the old form, which releases from 2.7 to 6 read.
    """
    root = epath.Path(directory)
    (root / "1_Pooling").mkdir(parents=True, exist_ok=True)
    folders = ("", "1_Pooling", "2_Normalize")
    modules = [
        {
            "idx": n,
            "name": str(n),
            "path": folder,
            "type": f"sentence_transformers.models.{kind}",
        }
        for n, (kind, folder) in enumerate(zip(CHAIN, folders, strict=True))
    ]
    modes = {f"pooling_mode_{kind}": kind == "lasttoken" for kind in POOLINGS}
    pooling = {"word_embedding_dimension": width, **modes, "include_prompt": True}
    prompts = {
        "prompts": {"query": query_prompt, "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    lengths = {"max_seq_length": max_tokens, "do_lower_case": False}
    for name, content in {
        MODULES: modules,
        "1_Pooling/config.json": pooling,
        PROMPTS: prompts,
        LENGTHS: lengths,
    }.items():
        (root / name).write_text(json.dumps(content, indent=2) + "\n")


def _read(path: epath.Path, empty: Any) -> Any:
    """JSON of the type of `empty`, the value for a missing file."""
    try:
        content = json.loads(path.read_text("utf-8")) if path.exists() else empty
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    whole = isinstance(content, type(empty))
    if not whole or not all(isinstance(c, dict) for c in content if empty == []):
        kind = "object" if empty == {} else "list of objects"
        raise UserError(f"{path}: must be a JSON {kind}")
    return content
