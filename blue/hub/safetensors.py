"""The safetensors file format: untrusted headers, tensors without a copy.

https://huggingface.co/docs/safetensors: eight bytes with the length of a JSON header,
the header (name -> dtype, shape, bytes), the tensors one after the other. The library
is not used because it reads local files only and copies. Nothing in a file can make
this code run code, read elsewhere, or allocate more than the file holds.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from blue.errors import UserError

HEADER_LIMIT = 100_000_000  # bytes, the library's
SIZES = {  # bytes of an element
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
}
FLOATS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}


class Stored(NamedTuple):
    """A tensor in a file, by the file's header."""

    path: epath.Path
    dtype: str  # the format's name
    shape: tuple[int, ...]
    start: int  # first byte


def read_header(path: epath.PathLike) -> dict[str, Stored]:
    """The tensors of a file by name, after checking that all of them are in it.

    Raises:
        UserError: one line with the file, the tensor, what is expected and found.
    """
    path = epath.Path(path)
    try:
        size = path.stat().length
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER_LIMIT):
                raise UserError(
                    f"{path}: cannot be read: its header should have {length} bytes "
                    f"and the file has {size}; it is cut off or no safetensors file"
                )
            text = file.read(length)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: its header: {error}") from None
    if not isinstance(header, dict):
        raise UserError(f"{path}: cannot be read: its header is no JSON object")
    header.pop("__metadata__", None)
    tensors, ends = {}, {}
    for name, entry in header.items():
        dtype, shape, (start, end) = _entry(path, name, entry)
        tensors[name] = Stored(path, dtype, shape, 8 + length + start)
        ends[name] = 8 + length + end
    last = 8 + length
    for name in sorted(tensors, key=lambda n: (tensors[n].start, ends[n])):
        if tensors[name].start != last:
            raise UserError(
                f"{path}: cannot be read: tensor {name!r} starts at byte "
                f"{tensors[name].start}, must at {last}, where the one before ends"
            )
        last = ends[name]
        if last > size:
            raise UserError(
                f"{path}: cannot be read: tensor {name!r} ends at byte {last} and the "
                f"file has {size}: it is cut off"
            )
    if last != size:
        raise UserError(
            f"{path}: cannot be read: its tensors end at byte {last} and the file has "
            f"{size}"
        )
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return out


def _entry(
    path: epath.Path, name: str, entry: Any
) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """dtype, shape, first byte and byte after the last of a tensor, among tensors."""
    whole = lambda x: isinstance(x, list) and all(type(n) is int and n >= 0 for n in x)
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape = fields.get("dtype"), fields.get("shape")
    offsets = fields.get("data_offsets")
    if not isinstance(dtype, str) or not (whole(shape) and whole(offsets)):
        raise UserError(
            f"{path}: cannot be read: tensor {name!r} has the header "
            f"{json.dumps(entry)[:120]}; needs dtype, shape and data_offsets"
        )
    assert isinstance(shape, list) and isinstance(offsets, list)
    wanted = SIZES.get(dtype, 0) * math.prod(shape)
    if len(offsets) != 2 or (wanted and offsets[1] - offsets[0] != wanted):
        raise UserError(
            f"{path}: cannot be read: tensor {name!r} is {dtype} of shape {shape}, "
            f"{wanted} bytes; its data_offsets are {offsets}"
        )
    return dtype, tuple(shape), (offsets[0], max(offsets))


def read(tensor: Stored) -> np.ndarray:
    """The tensor's values; for a local file a read-only, memory-mapped view."""
    dtype, shape = FLOATS[tensor.dtype], tensor.shape
    if not math.prod(shape):
        return np.empty(shape, dtype)
    if "://" not in os.fspath(tensor.path):
        file = np.memmap(tensor.path, np.uint8, "r")
        data = file[tensor.start : tensor.start + math.prod(shape) * dtype.itemsize]
        return data.view(dtype).reshape(shape).view(np.ndarray)
    with tensor.path.open("rb") as file:
        file.seek(tensor.start)
        data = file.read(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape)


def write(
    path: epath.PathLike,
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    values: Iterable[np.ndarray],
) -> None:
    """Writes a file tensor by tensor, with one in memory at a time.

    Args:
        tensors: shape and dtype by name, in the order of `values`.
    """
    spelled = {dtype: name for name, dtype in FLOATS.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks
    start = 0
    for name, (shape, dtype) in tensors.items():
        end = start + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": spelled[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    with epath.Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (shape, dtype), array in zip(tensors.values(), values, strict=True):
            assert array.shape == tuple(shape) and array.dtype == dtype
            # arrays may be non-contiguous
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
