"""Hugging Face directories: what is read, what is refused, what is written."""

import dataclasses
import importlib
import json
import pickle
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.numpy import load_file, save_file

from blue.errors import UserError
from blue.hub.directory import HEAD, PREFIXES, load_decoder, save_decoder
from blue.runtime.sharding import make_mesh, param_shardings
from tests.helpers.model_answers import load

FIXTURES = Path(__file__).parents[1] / "fixtures"
EMBED, Q1 = "model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def directory(tmp_path):
    """A copy of a checkpoint, to be damaged."""
    return Path(shutil.copytree(FIXTURES / "qwen3", tmp_path / "model"))


def read_tensors(directory):
    return load_file(directory / "model.safetensors")


def write_tensors(directory, tensors):
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def change_config(directory, **fields):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(directory, *parts):
    """Loading fails with one line that has all the parts, in order."""
    with pytest.raises(UserError) as caught:
        load(directory)
    assert "\n" not in str(caught.value)
    assert re.search(".*".join(map(re.escape, parts)), str(caught.value)), caught.value


def assert_same(found, expected):
    same = lambda a, b: np.testing.assert_array_equal(a, b, strict=True)
    jax.tree.map(same, found, expected)


# --- what is read


def test_tensors_land_where_the_decoder_looks():
    cfg, params = load(FIXTURES / "gemma3")
    tensors = read_tensors(FIXTURES / "gemma3")
    layer = "model.layers.3."
    q, o = (tensors[f"{layer}self_attn.{n}_proj.weight"] for n in "qo")
    x = np.random.default_rng(0).normal(size=cfg.width).astype(np.float32)
    heads = np.einsum("D,DNH->NH", x, params["layers"]["q"][3])
    np.testing.assert_allclose(heads.ravel(), q @ x, atol=1e-6)
    out = np.einsum("NH,NHD->D", heads, params["layers"]["o"][3])
    np.testing.assert_allclose(out, o @ heads.ravel(), atol=1e-5)
    norm = tensors[f"{layer}pre_feedforward_layernorm.weight"]
    np.testing.assert_array_equal(params["layers"]["mlp_norm"]["weight"][3], norm)
    assert "head" not in params


@pytest.mark.parametrize("name", ["gemma3", "qwen3_untied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_is_loaded(name, dtype, tmp_path):
    cfg, params = load(FIXTURES / name, dtype=dtype)
    save_decoder(tmp_path, cfg, params)
    again_cfg, again = load(tmp_path, dtype=dtype)
    assert again_cfg == cfg
    assert_same(again, params)
    written = set(read_tensors(tmp_path))
    assert written == set(read_tensors(FIXTURES / name))
    assert ("lm_head.weight" in written) == (not cfg.tied)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == dtype
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_saved_configs_keep_the_token_ids_of_their_source(tmp_path):
    cfg, params = load(FIXTURES / "gemma3")
    source = {"eos_token_id": [1, 106], "text_config": {"bos_token_id": 2}, "x": 3}
    save_decoder(tmp_path, cfg, params, source=source)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["eos_token_id"] == [1, 106] and config["bos_token_id"] == 2
    assert not {"x", "text_config", "pad_token_id"} & set(config)


def test_shards_equal_one_file(directory):
    expected = load(directory)
    tensors = read_tensors(directory)
    files = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        part = {name: tensors[name] for name in tensors if files[name] == file}
        save_file(part, directory / file)
    (directory / "model.safetensors").unlink()
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    found = load(directory)
    assert found[0] == expected[0]
    assert_same(found[1], expected[1])

    (directory / "model-1.safetensors").unlink()
    refused(directory, "model-1.safetensors", "cannot be read")


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("gemma3", (2, 2, 2)),
        ("qwen3_untied", (1, -1, 1)),
        pytest.param("qwen3_untied", (2, 2, 2), marks=pytest.mark.slow),
        pytest.param("qwen3_untied", (1, 1, 8), marks=pytest.mark.slow),
        pytest.param("gemma3", (1, -1, 1), marks=pytest.mark.slow),
        pytest.param("gemma3", (1, 1, 8), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_parameters_land_on_their_shards(name, sizes):
    mesh = make_mesh(*sizes)
    cfg, params = load_decoder(FIXTURES / name, mesh)
    assert_same(jax.device_get(params), load(FIXTURES / name)[1])
    wanted = param_shardings(params, mesh)
    jax.tree.map(lambda x, s: (x.sharding == s) or pytest.fail(f"{s}"), params, wanted)
    for leaf in (params["embed"], params["layers"]["down"]):
        assert leaf.sharding.shard_shape(leaf.shape) != leaf.shape


def test_a_large_model_is_written_in_several_files(tmp_path):
    cfg, params = load(FIXTURES / "qwen3_untied")
    (tmp_path / "model.safetensors").write_text("of an earlier, smaller one")
    save_decoder(tmp_path, cfg, params, shard_bytes=20_000)
    assert_same(load(tmp_path)[1], params)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted({*index["weight_map"].values()})
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    found = [load_file(tmp_path / name) for name in files]
    size = lambda part: sum(tensor.nbytes for tensor in part.values())
    assert index["metadata"]["total_size"] == sum(map(size, found))
    assert all(size(part) <= 20_000 or len(part) == 1 for part in found)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*files, "config.json", "model.safetensors.index.json"]
    )


def test_an_encoder_needs_no_head(tmp_path):
    cfg, params = load(FIXTURES / "qwen3_untied")
    tied, headless = load(FIXTURES / "qwen3_untied", head=False)
    assert not cfg.tied and tied == dataclasses.replace(cfg, tied=True)
    assert_same(headless, {k: v for k, v in params.items() if k != "head"})
    # as released: no head in the file although config.json says that it is not tied
    tensors = read_tensors(FIXTURES / "qwen3_untied")
    del tensors["lm_head.weight"]
    shutil.copy(FIXTURES / "qwen3_untied/config.json", tmp_path)
    write_tensors(tmp_path, {k.removeprefix("model."): v for k, v in tensors.items()})
    assert_same(load(tmp_path, head=False)[1], headless)
    refused(tmp_path, "lm_head.weight", "missing")


@pytest.fixture
def bucket(monkeypatch):
    """A fake gs://, in memory."""
    known = importlib.import_module("fsspec.registry")._registry
    monkeypatch.setitem(known, "gcs", MemoryFileSystem)
    yield "gs://bucket/models/a"
    MemoryFileSystem.store.clear()


def test_directories_in_a_bucket_are_like_local_ones(bucket):
    cfg, params = load(FIXTURES / "gemma3")
    save_decoder(bucket, cfg, params, shard_bytes=20_000)
    again_cfg, again = load(bucket)
    assert again_cfg == cfg
    assert_same(again, params)
    refused("gs://bucket/models/b", "gs://bucket/models/b/config.json", "needs this")
    weights = epath.Path(bucket) / "model-00001-of-00013.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(bucket, str(weights), "cut off")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", ["qwen3", "qwen3_untied"])
def test_every_prefix_is_understood(name, prefix, tmp_path):
    cfg, expected = load(FIXTURES / name)
    tensors = {
        (PREFIXES[prefix] + k if k == HEAD else prefix + k[len("model.") :]): v
        for k, v in read_tensors(FIXTURES / name).items()
    }
    other = np.zeros(3, np.float32)
    tensors |= {"vision_tower.x": other, "model.multi_modal_projector.x": other}
    write_tensors(tmp_path, tensors)
    shutil.copy(FIXTURES / name / "config.json", tmp_path)
    assert_same(load(tmp_path)[1], expected)


def test_tensors_need_not_be_aligned_nor_of_one_dtype(directory):
    """Some writers do not pad the header; norms are often kept in float32."""
    expected = load(directory)[1]
    tensors = read_tensors(directory)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float64)
    write_tensors(directory, tensors)
    path = directory / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip() + b" " * 3
    header += b" " * (len(header) % 2 == 0)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    assert_same(load(directory)[1], expected)


def test_a_stored_tied_head_must_be_the_embedding(directory):
    expected = load(directory)[1]
    tensors = read_tensors(directory)
    tensors["lm_head.weight"] = tensors[EMBED].copy()
    write_tensors(directory, tensors)
    assert_same(load(directory)[1], expected)
    tensors["lm_head.weight"][5, 5] += 1
    write_tensors(directory, tensors)
    refused(directory, "model.safetensors", "lm_head.weight", "differs from", EMBED)


# --- what is refused


def test_tensors_that_do_not_fit_are_named(directory):
    tensors = read_tensors(directory)
    write_tensors(directory, {k: v for k, v in tensors.items() if k != Q1})
    refused(directory, str(directory), Q1, "[32, 32]", "missing")

    write_tensors(directory, tensors | {Q1: tensors[Q1][:, :8].copy()})
    refused(directory, "model.safetensors", Q1, "[32, 8]", "[32, 32]")

    write_tensors(directory, tensors | {Q1: tensors[Q1].astype(np.int8)})
    refused(directory, "model.safetensors", Q1, "I8", "BF16")

    bias = "model.layers.0.self_attn.q_proj.bias"
    write_tensors(directory, tensors | {bias: np.zeros(32, np.float32)})
    refused(directory, "model.safetensors", bias, "[32]", "not part of")

    write_tensors(directory, {"transformer.wte.weight": tensors[EMBED]})
    refused(directory, str(directory), "embed_tokens.weight")


def test_a_config_of_another_size_is_refused(directory):
    change_config(directory, num_hidden_layers=1)
    refused(directory, "model.safetensors", "model.layers.1.", "not part of")
    change_config(directory, num_hidden_layers=2, vocab_size=10**12)
    refused(directory, "model.safetensors", EMBED, "[96, 32]", "[1000000000000, 32]")


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", 7]
)
def test_an_index_cannot_lead_out_of_its_directory(directory, name):
    shutil.copy(directory / "model.safetensors", directory.parent)
    (directory / "model.safetensors").unlink()
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {EMBED: name}}))
    refused(directory, str(index), EMBED, repr(name), "plain name")


def test_an_index_must_be_right(directory):
    tensors = read_tensors(directory)
    shutil.move(directory / "model.safetensors", directory / "a.safetensors")
    index = directory / "model.safetensors.index.json"
    files = dict.fromkeys([*tensors, "more"], "a.safetensors")
    index.write_text(json.dumps({"weight_map": files}))
    refused(directory, "a.safetensors", "more", "missing")
    index.write_text('{"weight_map": []}')
    refused(directory, str(index), "weight_map")


def test_what_an_index_leaves_out_is_named(directory):
    tensors = read_tensors(directory)
    shutil.move(directory / "model.safetensors", directory / "a.safetensors")
    index = directory / "model.safetensors.index.json"
    files = dict.fromkeys([name for name in tensors if name != Q1], "a.safetensors")
    index.write_text(json.dumps({"weight_map": files}))
    refused(directory, "a.safetensors", Q1, "not in model.safetensors.index.json")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickles_are_never_opened(directory, name):
    (directory / "model.safetensors").unlink()
    (directory / name).write_bytes(pickle.dumps(Bomb(directory / "went_off")))
    refused(directory, name, "not opened", "run code", "model.safetensors")
    assert not (directory / "went_off").exists()


class Bomb:
    """Unpickling it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_an_adapter_is_no_model(directory):
    (directory / "config.json").rename(directory / "adapter_config.json")
    refused(directory, str(directory), "adapter", "merged")


def test_broken_files_are_named(directory):
    weights, config = directory / "model.safetensors", directory / "config.json"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(directory, str(weights), "cannot be read")
    weights.unlink()
    refused(directory, str(weights), "cannot be read")
    config.write_text("{")
    refused(directory, str(config), "not JSON")
    config.write_text("[]")
    refused(directory, str(config), "object")
    config.unlink()
    refused(directory, str(config), "No such file")


# --- config.json

TEXT = {"model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 4}


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"model_type": "llama"}, ("model_type", "'llama'", "gemma3_text", "qwen3")),
        ({"quantization_config": {"bits": 4}}, ("quantized",)),
        ({"hidden_size": "64"}, ("hidden_size", "'64'", "whole number")),
        ({"num_hidden_layers": 0}, ("num_hidden_layers", "0")),
        ({"rms_norm_eps": None}, ("rms_norm_eps", "None")),
        ({"hidden_activation": "relu"}, ("hidden_activation", "'relu'", "gelu")),
        ({"attention_bias": True}, ("attention_bias", "True")),
        ({"final_logit_softcapping": 30.0}, ("final_logit_softcapping", "30.0")),
        ({"use_bidirectional_attention": True}, ("use_bidirectional_attention",)),
        ({"rope_scaling": {"type": "yarn"}}, ("rope_type", "'yarn'", "linear")),
        ({"rope_scaling": {"type": "linear"}}, ("factor", "None")),
        ({"rope_parameters": {"rope_theta": 1.0}}, ("rope_parameters", "full_attent")),
        (
            {"rope_parameters": {"sliding_attention": {"type": "linear", "factor": 2}}},
            ("sliding_attention",),
        ),
        ({"layer_types": ["full_attention"]}, ("layer_types", "4 times")),
        ({"layer_types": ["chunked"] * 4}, ("layer_types", "chunked")),
        ({"model_type": "qwen3", "use_sliding_window": True}, ("use_sliding_window",)),
        ({"model_type": "qwen3", "hidden_act": "gelu"}, ("hidden_act", "'gelu'")),
    ],
    ids=str,
)
def test_what_the_decoder_cannot_do_is_refused(fields, parts, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TEXT | fields))
    refused(tmp_path, str(path), *parts)
