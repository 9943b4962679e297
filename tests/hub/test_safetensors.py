"""The file format against the library that defines it, and files that lie."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from blue.errors import UserError
from blue.hub import safetensors

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4).astype(jnp.bfloat16),
    "empty": np.zeros((0, 5), np.float32),
    "c": np.array(7.5, np.float16),
    "d": np.arange(3, dtype=np.float64)[::-1],
}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_files_of_the_library_are_read(tmp_path):
    tensors = {name: np.ascontiguousarray(a) for name, a in TENSORS.items()}
    tensors["ids"] = np.arange(3, dtype=np.int64)
    save_file(tensors, tmp_path / "x", metadata={"format": "pt"})
    header = safetensors.read_header(tmp_path / "x")
    assert header["ids"].dtype == "I64" and header["ids"].shape == (3,)
    del tensors["ids"], header["ids"]
    assert_same({n: safetensors.read(t) for n, t in header.items()}, tensors)


def test_the_library_reads_our_files(tmp_path):
    kinds = {name: (array.shape, array.dtype) for name, array in TENSORS.items()}
    safetensors.write(tmp_path / "x", kinds, iter(TENSORS.values()))
    assert_same(load_file(tmp_path / "x"), TENSORS)
    with safe_open(tmp_path / "x", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
    header = safetensors.read_header(tmp_path / "x")
    assert_same({n: safetensors.read(t) for n, t in header.items()}, TENSORS)


def test_local_tensors_are_views_of_the_file(tmp_path):
    save_file({"a": TENSORS["a"]}, tmp_path / "x")
    array = safetensors.read(safetensors.read_header(tmp_path / "x")["a"])
    assert not array.flags.writeable and not array.flags.owndata
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)


A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}
LIES = {
    "end beyond the file": ({"a": A, "b": B | {"data_offsets": [8, 24]}}, "'b' is F32"),
    "shape beyond the file": (
        {"a": A, "b": {"dtype": "F32", "shape": [1000], "data_offsets": [8, 4008]}},
        "'b' ends at byte",
    ),
    "size of another shape": ({"a": A | {"shape": [3]}, "b": B}, "12 bytes"),
    "enormous shape": ({"a": A | {"shape": [2**62, 2**62]}, "b": B}, "'a' is F32"),
    "overlap": ({"a": A, "b": B | {"data_offsets": [4, 12]}}, "'b' starts at"),
    "hole": ({"b": B}, "'b' starts at"),
    "left over": ({"a": A}, "end at byte"),
    "backwards": ({"a": A, "b": B | {"data_offsets": [16, 8]}}, "'b' is F32"),
    "negative": ({"a": A | {"data_offsets": [-8, 0]}, "b": B}, "'a' has the header"),
    "fraction": ({"a": A | {"shape": [2.0]}, "b": B}, "'a' has the header"),
    "three offsets": ({"a": A | {"data_offsets": [0, 8, 8]}, "b": B}, "'a' is F32"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}, "b": B}, "'a' has"),
    "no object": ({"a": 7, "b": B}, "'a' has the header 7"),
    "list": ([], "no JSON object"),
    "text": ("x", "no JSON object"),
}


def write_file(path, header, data=bytes(16)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def refused(path, *parts):
    with pytest.raises(UserError) as caught:
        safetensors.read_header(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    for part in (str(path), "cannot be read", *parts):
        assert part in str(caught.value), caught.value
    with pytest.raises(SafetensorError):  # the library agrees
        safe_open(path, framework="np")


@pytest.mark.parametrize("name", LIES)
def test_headers_that_lie_are_refused(name, tmp_path):
    header, part = LIES[name]
    write_file(tmp_path / "x", header)
    refused(tmp_path / "x", part)


def test_headers_that_are_none_are_refused(tmp_path):
    path = tmp_path / "x"
    write_file(path, b"{")
    refused(path, "its header")
    write_file(path, b"\xff\xfe")
    refused(path, "its header")
    write_file(path, b"[" * 100_000)
    refused(path, "its header")
    path.write_bytes(b"")
    refused(path, "0 bytes")
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    refused(path, str(2**62), "the file has 10")
    write_file(path, {"a": A, "b": B}, bytes(15))
    refused(path, "'b' ends at byte", "cut off")


def test_a_tensor_that_stands_twice_is_refused(tmp_path):
    text = json.dumps({"a": A, "b": B}).replace('"b"', '"a"')
    write_file(tmp_path / "x", text.encode())
    with pytest.raises(UserError, match="'a' is there twice"):
        safetensors.read_header(tmp_path / "x")
