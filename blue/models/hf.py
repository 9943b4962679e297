"""Hugging Face directories in and out: config.json and safetensors, sharded or not."""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from blue.errors import UserError
from blue.models import gemma3, qwen3
from blue.models.decoder import DecoderConfig, Params, init_params

FAMILIES = {"gemma3_text": gemma3, "gemma3": gemma3, "qwen3": qwen3}
HEAD = "lm_head.weight"
# What stands before "embed_tokens.weight" and before the head: a text model, one saved
# without its head (encoders), the text tower of multimodal Gemma 3, old and new.
PREFIXES = {
    "model.": "",
    "": "",
    "language_model.model.": "language_model.",
    "model.language_model.": "",
}
OTHER_TOWERS = ("vision_tower.", "multi_modal_projector.")
# Kept from the source when a model is written: nothing of its architecture.
KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")


class Tensor(NamedTuple):
    """Where a tensor of the checkpoint lives in our tree."""

    path: tuple[str, ...]
    layer: int | None
    inputs: int  # leading axes of our array that are inputs; 0: the same array
    shape: tuple[int, ...]  # in the file


class Stored(NamedTuple):
    """Where a tensor is stored: its file, open."""

    path: Path
    handle: Any


# --- loading


def load(
    directory: str | os.PathLike, *, dtype: Any = "float32"
) -> tuple[DecoderConfig, Params]:
    """The model of a Hugging Face directory, as a tree of numpy arrays.

    Args:
        directory: has config.json and model.safetensors, or the shards and their index.
            Files with pickled weights are never opened.
        dtype: of all parameters; the file's may be any floating one.

    Returns:
        The decoder's configuration and its parameters, those of the layers stacked.

    Raises:
        UserError: one line naming the file, and the field or the tensor with what was
            expected and what was found.
    """
    directory = Path(directory)
    family, cfg = _read_config(directory / "config.json")
    with _open_tensors(directory) as found:
        prefix = _find_prefix(directory, found)
        expected = _tensors(cfg, family, prefix)
        _check(directory, found, expected, tied_head=PREFIXES[prefix] + HEAD)
        empty = lambda shape: np.empty(shape.shape, jnp.dtype(dtype))
        params = jax.tree.map(empty, _shapes(cfg))
        for name, tensor in expected.items():
            values = found[name].handle.get_tensor(name)
            values = values.T if tensor.inputs else values
            target = _leaf(params, tensor.path)
            where = ... if tensor.layer is None else tensor.layer
            target[where] = values.reshape(target[where].shape)
    return cfg, params


def _read_config(path: Path) -> tuple[ModuleType, DecoderConfig]:
    """The family's module and the decoder's configuration."""
    config = _read_json(path)
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise UserError(
            f"{path}: model_type is {kind!r}; supported are {', '.join(FAMILIES)}"
        )
    if config.get("quantization_config"):
        raise UserError(f"{path}: quantized weights are not supported")
    try:
        return FAMILIES[kind], FAMILIES[kind].from_config(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; a model needs this file") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a JSON object")
    return content


@contextlib.contextmanager
def _open_tensors(directory: Path) -> Iterator[dict[str, Stored]]:
    """The directory's tensors: of the index, or of the single file."""
    from safetensors import SafetensorError, safe_open

    single = directory / "model.safetensors"
    index = directory / "model.safetensors.index.json"
    with contextlib.ExitStack() as stack:

        def open_file(path: Path) -> Any:
            try:
                return stack.enter_context(safe_open(path, framework="np"))
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path}: cannot be read: {error}") from None

        if single.exists() or not index.exists():
            handle = open_file(single)
            yield {name: Stored(single, handle) for name in handle.keys()}
            return
        files = _read_index(index)
        shards = {}
        for name in sorted(set(files.values())):
            shards[name] = Stored(directory / name, open_file(directory / name))
        held = {name: set(shard.handle.keys()) for name, shard in shards.items()}
        for tensor, name in files.items():
            if tensor not in held[name]:
                raise UserError(f"{directory / name}: tensor {tensor!r} is missing")
        yield {tensor: shards[name] for tensor, name in files.items()}


def _read_index(path: Path) -> dict[str, str]:
    """Tensor -> file name. Names that could lead out of the directory are refused."""
    files = _read_json(path).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise UserError(f"{path}: weight_map must be an object of tensors and files")
    for tensor, name in files.items():
        plain = isinstance(name, str) and name == Path(name).name and "\\" not in name
        if not plain or not name.endswith(".safetensors"):
            raise UserError(
                f"{path}: tensor {tensor!r} is said to be in {name!r}; it must be the "
                "plain name of a .safetensors file in the same directory"
            )
    return files


def _find_prefix(directory: Path, names: Mapping[str, Any]) -> str:
    for prefix in PREFIXES:
        if f"{prefix}embed_tokens.weight" in names:
            return prefix
    raise UserError(f"{directory}: no tensor is named [prefix]embed_tokens.weight")


def _check(
    directory: Path,
    found: Mapping[str, Stored],
    expected: Mapping[str, Tensor],
    *,
    tied_head: str,
) -> None:
    """Every expected tensor is there, and none that would be silently left out."""
    for name, tensor in expected.items():
        if name not in found:
            shape = list(tensor.shape)
            raise UserError(f"{directory}: tensor {name!r} of shape {shape} is missing")
        _check_tensor(name, found[name], tensor)
    for name, stored in found.items():
        if name in expected or name.removeprefix("model.").startswith(OTHER_TOWERS):
            continue
        if name == tied_head:  # some releases store it, too
            embed = next(iter(expected))
            _check_tensor(name, stored, expected[embed])
            tensors = [found[n].handle.get_tensor(n) for n in (embed, name)]
            if np.array_equal(*tensors):
                continue
            raise UserError(
                f"{stored.path}: tensor {name!r} differs from {embed!r}, to which "
                "config.json ties it (tie_word_embeddings)"
            )
        raise UserError(
            f"{stored.path}: tensor {name!r} of shape {_shape(name, stored)} is not "
            "part of the model that config.json describes"
        )


def _check_tensor(name: str, stored: Stored, tensor: Tensor) -> None:
    shape, dtype = _shape(name, stored), stored.handle.get_slice(name).get_dtype()
    if shape != list(tensor.shape):
        raise UserError(
            f"{stored.path}: tensor {name!r} has shape {shape}; "
            f"config.json asks for {list(tensor.shape)}"
        )
    if dtype not in ("F64", "F32", "F16", "BF16"):
        raise UserError(
            f"{stored.path}: tensor {name!r} is {dtype}; must be F32, F16 or BF16"
        )


def _shape(name: str, stored: Stored) -> list[int]:
    return list(stored.handle.get_slice(name).get_shape())


# --- saving


def save(
    directory: str | os.PathLike,
    cfg: DecoderConfig,
    params: Params,
    *,
    source: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json and model.safetensors, for transformers and vLLM to load.

    Args:
        directory: made if it is not there; the two files are replaced.
        params: any tree like that of `load`, in the dtype in which it will be stored.
        source: fields of config.json that are not the architecture's: the token ids
            (`bos_token_id`, `eos_token_id`, `pad_token_id`) and
            `max_position_embeddings` are taken from here. May be a whole config.json.
    """
    from safetensors.numpy import save_file

    family = gemma3 if cfg.norm_plus_one else qwen3
    config = family.to_config(cfg)
    again = dataclasses.replace(family.from_config(config), pattern=cfg.pattern)
    assert again == cfg, f"config.json cannot say {cfg}"
    source = source or {}
    source = {**source, **(source.get("text_config") or {})}
    config |= {key: source[key] for key in KEPT if key in source}
    config["torch_dtype"] = str(params["embed"].dtype)

    arrays = {}
    for name, tensor in _tensors(cfg, family, "model.").items():
        values = np.asarray(_leaf(params, tensor.path))
        values = values if tensor.layer is None else values[tensor.layer]
        if tensor.inputs:
            values = values.reshape(tensor.shape[::-1]).T
        # save_file writes the memory of an array as it lies, strides ignored
        arrays[name] = np.ascontiguousarray(values)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    part = directory / "model.safetensors.part"
    save_file(arrays, part, metadata={"format": "pt"})
    part.replace(directory / "model.safetensors")
    text = json.dumps(config, indent=2) + "\n"
    (directory / "config.json").write_text(text, "utf-8")


# --- names and shapes


def _shapes(cfg: DecoderConfig) -> Params:
    return jax.eval_shape(lambda key: init_params(cfg, key), jax.random.key(0))


def _tensors(cfg: DecoderConfig, family: ModuleType, prefix: str) -> dict[str, Tensor]:
    """Every tensor of the checkpoint by its full name."""
    shapes = _shapes(cfg)
    tensors = {}
    for name, (path, inputs) in family.TENSORS.items():
        stacked = path[0] == "layers"
        shape = _leaf(shapes, path).shape[1 if stacked else 0 :]
        if inputs:
            shape = (math.prod(shape[inputs:]), math.prod(shape[:inputs]))
        for layer in range(cfg.num_layers) if stacked else (None,):
            tensors[prefix + name.format(layer)] = Tensor(path, layer, inputs, shape)
    if not cfg.tied:
        shape = shapes["head"].shape
        tensors[PREFIXES[prefix] + HEAD] = Tensor(("head",), None, 0, shape)
    return tensors


def _leaf(tree: Params, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree
