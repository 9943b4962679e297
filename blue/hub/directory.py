"""Loads and saves Hugging Face directories: config.json and safetensors, also
sharded."""

import collections
import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from blue.errors import UserError
from blue.hub import safetensors
from blue.hub.safetensors import FLOATS, Stored
from blue.models import families
from blue.models.decoder import DecoderConfig, Params, init_params
from blue.runtime.sharding import param_shardings, to_host

HEAD = "lm_head.weight"
# Prefixes of "embed_tokens.weight" and of the head: a text model, one saved without its
# head (encoders), the text tower of multimodal Gemma 3: old, new, without head.
PREFIXES = {
    "model.": "",
    "": "",
    "language_model.model.": "language_model.",
    "model.language_model.": "",
    "language_model.": "",
}
OTHER_TOWERS = ("vision_tower.", "multi_modal_projector.")
# Fields kept from the source when a model is written; none of its architecture.
KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")
WEIGHTS = "model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
SHARD_BYTES = 5_000_000_000  # of one file; larger models get several and an index


class Tensor(NamedTuple):
    """The place of a checkpoint's tensor in our tree."""

    path: tuple[str, ...]
    layer: int | None
    inputs: int  # leading axes of our array that are inputs; 0: the same array
    shape: tuple[int, ...]  # in the file


# --- loading


def load_decoder(
    directory: epath.PathLike, mesh: Mesh, *, dtype: Any = "float32", head: bool = True
) -> tuple[DecoderConfig, Params]:
    """The model of a Hugging Face directory, its parameters sharded over the mesh.

    Each tensor goes from its file to its shards. Beside the parameters, memory holds at
    most one tensor.

    Args:
        directory: local or gs://; has config.json and model.safetensors, or the shards
            and their index. Files with pickled weights are never opened.
        dtype: of all parameters; the file may have any floating dtype.
        head: False for an encoder, which does not need an untied head.

    Returns:
        The decoder's configuration and its parameters, those of the layers stacked.

    Raises:
        UserError: one line naming the file, and the field or the tensor with what was
            expected and what was found.
    """
    directory = epath.Path(directory)
    cfg = read_config(directory)
    if not head:
        cfg = dataclasses.replace(cfg, tied=True)
    found = _find_tensors(directory)
    prefix = _find_prefix(directory, found)
    if not head:
        found.pop(PREFIXES[prefix] + HEAD, None)
    expected = _tensors(cfg, prefix)
    _check(directory, found, expected, tied_head=PREFIXES[prefix] + HEAD)
    shapes = _shapes(cfg, dtype)
    shardings = param_shardings(shapes, mesh)
    params = jax.tree.map(lambda leaf: None, shapes)
    with ThreadPoolExecutor(max_workers=1) as reader:  # one tensor ahead
        read = lambda name: reader.submit(
            _read_parts,
            found[name],
            expected[name],
            _leaf(shardings, expected[name].path),
        )
        names = list(expected)
        ahead = read(names[0])
        for name, after in itertools.zip_longest(names, names[1:]):
            parts, ahead = ahead.result(), read(after) if after else ahead
            tensor = expected[name]
            leaves = [_leaf(tree, tensor.path) for tree in (params, shapes, shardings)]
            placed = _place(parts, tensor, *leaves)
            _set_leaf(params, tensor.path, jax.block_until_ready(placed))
    return cfg, params


def _read_parts(stored: Stored, tensor: Tensor, sharding: NamedSharding) -> jax.Array:
    """The tensor with the axes of the file; each device reads the part it has of our
    array."""
    spec = tuple(sharding.spec)[0 if tensor.layer is None else 1 :]
    values = safetensors.read(stored)
    return jax.make_array_from_callback(
        stored.shape,
        NamedSharding(sharding.mesh, _spec_in_file(spec, tensor.inputs)),
        lambda index: values[index],
    )


def _place(
    parts: jax.Array,
    tensor: Tensor,
    stacked: jax.Array | None,
    shape: jax.ShapeDtypeStruct,
    sharding: NamedSharding,
) -> jax.Array:
    """Our array, transposed and cast on the devices; for a layer, its stack, filled
    in."""
    if tensor.layer is None:
        return _make_new(shape.shape, tensor.inputs, shape.dtype, sharding)(parts)
    if stacked is None:
        stacked = _make_zeros(shape.shape, shape.dtype, sharding)()
    fill = _fill_layer(tensor.inputs, sharding)
    return fill(stacked, parts, np.int32(tensor.layer))


def _spec_in_file(spec: tuple, inputs: int) -> PartitionSpec:
    """The same sharding for the file's [outputs, inputs], whose axes are merged."""
    if not inputs or not spec:
        return PartitionSpec(*spec)
    assert not any((*spec[1:inputs], *spec[inputs + 1 :]))
    return PartitionSpec(spec[inputs], spec[0])


def _new(values: jax.Array, *, shape: tuple, inputs: int, dtype: Any) -> jax.Array:
    values = values.T if inputs else values
    # a copy: the result must not be a view of the file
    return jnp.array(values.reshape(shape), dtype, copy=True)


# Cached, so that a second model of the same shapes compiles nothing.
@functools.cache
def _make_new(shape: tuple, inputs: int, dtype: Any, sharding: NamedSharding) -> Any:
    """(tensor as in the file) -> our array."""
    new = functools.partial(_new, shape=shape, inputs=inputs, dtype=dtype)
    return jax.jit(new, out_shardings=sharding)


@functools.cache
def _make_zeros(shape: tuple, dtype: Any, sharding: NamedSharding) -> Any:
    """() -> a stack of layers before the first is filled in."""
    zeros = functools.partial(jnp.zeros, shape, dtype)
    return jax.jit(zeros, out_shardings=sharding)


@functools.cache
def _fill_layer(inputs: int, sharding: NamedSharding) -> Any:
    """(stack, one layer as in the file, its number), stack donated -> stack."""

    def fill(stacked: jax.Array, values: jax.Array, layer: jax.Array) -> jax.Array:
        new = _new(values, shape=stacked.shape[1:], inputs=inputs, dtype=stacked.dtype)
        return jax.lax.dynamic_update_index_in_dim(stacked, new, layer, 0)

    return jax.jit(fill, out_shardings=sharding, donate_argnums=0)


# --- what is in a directory


def read_source(directory: epath.PathLike) -> dict[str, Any]:
    """The content of config.json."""
    return _read_json(epath.Path(directory) / "config.json")


def read_config(directory: epath.PathLike) -> DecoderConfig:
    """The decoder that a directory's config.json describes; raises as `load`."""
    directory = epath.Path(directory)
    path = directory / "config.json"
    if (directory / "adapter_config.json").exists() and not path.exists():
        raise UserError(
            f"{directory}: holds an adapter, not a model (adapter_config.json): name a "
            "directory with the merged weights, such as export/profiler of its run"
        )
    config = read_source(directory)
    if config.get("quantization_config"):
        raise UserError(f"{path}: quantized weights are not supported")
    try:
        return families.of_model_type(config.get("model_type")).from_config(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: {reason}; a model needs this file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a JSON object")
    return content


def _find_tensors(directory: epath.Path) -> dict[str, Stored]:
    """The directory's tensors: of the single file, or of the index."""
    single, index = directory / WEIGHTS, directory / f"{WEIGHTS}.index.json"
    if single.exists():
        return safetensors.read_header(single)
    if not index.exists():
        pickled = [p.name for p in directory.iterdir() if p.suffix in PICKLED]
        if pickled:
            raise UserError(
                f"{directory / min(pickled)}: not opened, for such files can run code "
                f"when they are read; save the model as {WEIGHTS}"
            )
        raise UserError(
            f"{single}: cannot be read: there is no such file, and no {index.name}"
        )
    files = _read_index(index)
    held = {n: safetensors.read_header(directory / n) for n in set(files.values())}
    for tensor, name in files.items():
        if tensor not in held[name]:
            raise UserError(f"{directory / name}: tensor {tensor!r} is missing")
    for name, tensors in held.items():
        for tensor in tensors:
            if files.get(tensor) != name:
                raise UserError(
                    f"{directory / name}: tensor {tensor!r} is not in {index.name}"
                )
    return {tensor: held[name][tensor] for tensor, name in files.items()}


def _read_index(path: epath.Path) -> dict[str, str]:
    """Tensor -> file name. Names that could lead out of the directory are refused."""
    files = _read_json(path).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise UserError(f"{path}: weight_map must be an object of tensors and files")
    for tensor, name in files.items():
        plain = isinstance(name, str) and not {"/", "\\", "\0"} & set(name)
        if not plain or not name.endswith(".safetensors"):
            raise UserError(
                f"{path}: tensor {tensor!r} is said to be in {name!r}; it must be the "
                "plain name of a .safetensors file in the same directory"
            )
    return files


def _find_prefix(directory: epath.Path, names: Mapping[str, Any]) -> str:
    for prefix in PREFIXES:
        if f"{prefix}embed_tokens.weight" in names:
            return prefix
    raise UserError(f"{directory}: no tensor is named [prefix]embed_tokens.weight")


def _check(
    directory: epath.Path,
    found: Mapping[str, Stored],
    expected: Mapping[str, Tensor],
    *,
    tied_head: str,
) -> None:
    """Raises `UserError` unless every expected tensor exists, and no others."""
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
            if _same(found[embed], stored):
                continue
            raise UserError(
                f"{stored.path}: tensor {name!r} differs from {embed!r}, to which "
                "config.json ties it (tie_word_embeddings)"
            )
        raise UserError(
            f"{stored.path}: tensor {name!r} of shape {list(stored.shape)} is not part "
            "of the model that config.json describes"
        )


def _check_tensor(name: str, stored: Stored, tensor: Tensor) -> None:
    if stored.shape != tensor.shape:
        raise UserError(
            f"{stored.path}: tensor {name!r} has shape {list(stored.shape)}; "
            f"config.json asks for {list(tensor.shape)}"
        )
    if stored.dtype not in FLOATS:
        raise UserError(
            f"{stored.path}: tensor {name!r} is {stored.dtype}; must be F32, F16 or "
            "BF16"
        )


def _same(a: Stored, b: Stored) -> bool:
    """Whether two tensors are equal; compared in parts to save memory."""
    one, other = safetensors.read(a), safetensors.read(b)
    starts = range(0, len(one), 4096)
    return all(np.array_equal(one[i : i + 4096], other[i : i + 4096]) for i in starts)


# --- saving


def save_decoder(
    directory: epath.PathLike,
    cfg: DecoderConfig,
    params: Params,
    *,
    source: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config.json and the weights, for transformers and vLLM to load.

    One tensor at a time is on the host. Every process calls it, one writes.

    Args:
        directory: made if it is not there; config.json and weights are replaced.
        params: a tree like that of `load_decoder`, in the dtype to be stored.
        source: fields of config.json beside the architecture, or a whole config.json.
            Token ids (`bos_token_id`, `eos_token_id`, `pad_token_id`) and
            `max_position_embeddings` are taken from it.
        shard_bytes: of one file at most; larger models get several files and an index.
    """
    directory = epath.Path(directory)
    family = families.of(cfg)
    config = family.to_config(cfg)
    again = dataclasses.replace(family.from_config(config), pattern=cfg.pattern)
    assert again == cfg, f"config.json cannot say {cfg}"
    source = source or {}
    source = {**source, **(source.get("text_config") or {})}
    config |= {key: source[key] for key in KEPT if key in source}
    dtype = np.dtype(params["embed"].dtype)
    config["torch_dtype"] = str(dtype)

    tensors = _tensors(cfg, "model.")
    files = _split(tensors, dtype.itemsize, shard_bytes)
    writes = jax.process_index() == 0
    if writes:
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.glob("model*.safetensors*"):
            old.unlink()
    for file, names in files.items():
        kinds = {name: (tensors[name].shape, dtype) for name in names}
        values = (_fetch(params, tensors[name]) for name in names)
        if writes:
            safetensors.write(directory / file, kinds, values)
        else:
            collections.deque(values, maxlen=0)
    if not writes:
        return
    if len(files) > 1:
        size = sum(math.prod(t.shape) for t in tensors.values()) * dtype.itemsize
        index = {
            "metadata": {"total_size": size},
            "weight_map": {name: file for file in files for name in files[file]},
        }
        _write_json(directory / f"{WEIGHTS}.index.json", index)
    _write_json(directory / "config.json", config)


def _split(
    tensors: Mapping[str, Tensor], itemsize: int, limit: int
) -> dict[str, list[str]]:
    """File name -> its tensors, in order, `limit` bytes a file or a single tensor."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        own = math.prod(tensor.shape) * itemsize
        if groups[-1] and size + own > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += own
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    count = len(groups)
    return {
        f"model-{n + 1:05}-of-{count:05}.safetensors": g for n, g in enumerate(groups)
    }


def _fetch(params: Params, tensor: Tensor) -> np.ndarray:
    """One tensor with the axes of the file."""
    values = _leaf(params, tensor.path)
    values = values if tensor.layer is None else values[tensor.layer]
    values = np.asarray(to_host(values))
    return values.reshape(tensor.shape[::-1]).T if tensor.inputs else values


def _write_json(path: epath.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


# --- names and shapes


@functools.cache
def _shapes(cfg: DecoderConfig, dtype: Any = "float32") -> Params:
    init = lambda key: init_params(cfg, key, str(jnp.dtype(dtype)))
    return jax.eval_shape(init, jax.random.key(0))


def _tensors(cfg: DecoderConfig, prefix: str) -> dict[str, Tensor]:
    """Every tensor of the checkpoint by its full name."""
    shapes = _shapes(cfg)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    ours = {tuple(key.key for key in path) for path, _ in leaves}
    names = {n: at for n, at in families.of(cfg).TENSORS.items() if at[0] in ours}
    unnamed = ours - {path for path, _ in names.values()} - {("head",)}
    assert not unnamed, f"family {cfg.family} has no names for {unnamed}"
    tensors = {}
    for name, (path, inputs) in names.items():
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


def _set_leaf(tree: Params, path: tuple[str, ...], value: Any) -> None:
    _leaf(tree, path[:-1])[path[-1]] = value
