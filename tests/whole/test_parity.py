"""Other seeds and sizes against transformers itself, and back. Needs torch."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from blue.hub import safetensors
from blue.hub.directory import KEPT, save_decoder
from tests.helpers import model_answers

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers")
from tests.helpers import torch_models  # noqa: E402

pytestmark = pytest.mark.parity

LINEAR = {"rope_type": "linear", "factor": 4.0}
GEMMA3, QWEN3 = torch_models.random_gemma3, torch_models.random_qwen3
MODELS = {
    "gemma3": (GEMMA3, {}),
    "gemma3 scanned": (GEMMA3, {"num_hidden_layers": 13, "hidden_size": 16}),
    "gemma3 other pattern": (
        GEMMA3,
        {"sliding_window_pattern": 2, "num_hidden_layers": 5},
    ),
    "gemma3 layer types": (
        GEMMA3,
        {
            "layer_types": ["full_attention"] + ["sliding_attention"] * 2,
            "num_hidden_layers": 3,
        },
    ),
    "gemma3 one key": (
        GEMMA3,
        {
            "num_key_value_heads": 1,
            "head_dim": 16,
            "rope_scaling": LINEAR,
            "num_hidden_layers": 6,
        },
    ),
    "gemma3 own scale": (
        GEMMA3,
        {"query_pre_attn_scalar": 40, "rms_norm_eps": 1e-3, "num_hidden_layers": 2},
    ),
    "gemma3 bases": (
        GEMMA3,
        {"rope_theta": 5e3, "rope_local_base_freq": 50.0, "num_hidden_layers": 6},
    ),
    "gemma3 untied": (GEMMA3, {"tie_word_embeddings": False, "num_hidden_layers": 2}),
    "gemma3 other sizes": (
        GEMMA3,
        {
            "vocab_size": 131,
            "hidden_size": 48,
            "intermediate_size": 40,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "sliding_window": 3,
            "num_hidden_layers": 6,
        },
    ),
    "qwen3 other sizes": (
        QWEN3,
        {
            "vocab_size": 131,
            "hidden_size": 48,
            "intermediate_size": 40,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "rms_norm_eps": 1e-3,
        },
    ),
    "qwen3 tied": (QWEN3, {"tie_word_embeddings": True, "rope_theta": 1e6}),
    "qwen3 untied": (QWEN3, {"tie_word_embeddings": False}),
    "qwen3 every key": (QWEN3, {"num_key_value_heads": 4, "rope_scaling": LINEAR}),
    "qwen3 deep": (QWEN3, {"num_hidden_layers": 4, "head_dim": 16}),
}


@pytest.mark.parametrize("name", MODELS)
def test_parity_and_back(name, tmp_path):
    make, fields = MODELS[name]
    seed = 10 + list(MODELS).index(name)
    model = make(seed, **fields)
    shards = {"max_shard_size": "30KB"} if seed % 2 else {}
    torch_models.save(model, tmp_path, **shards)
    cfg, params = model_answers.load(tmp_path)
    tokens, mask = torch_models.batch(seed, [13, 6, 1], cfg.vocab_size)
    found = model_answers.answers(params, cfg, tokens, mask, new_tokens=8)
    expected = torch_models.answers(model, tokens, mask, new_tokens=8)
    gap = np.abs(found["logprobs"] - expected["logprobs"])[mask].max()
    assert gap < 1e-4
    np.testing.assert_allclose(found["embeddings"], expected["embeddings"], atol=1e-4)
    np.testing.assert_array_equal(found["greedy"], expected["greedy"])

    source = json.loads((tmp_path / "config.json").read_text())
    save_decoder(tmp_path / "back", cfg, params, source=source)
    again, loading = type(model).from_pretrained(
        tmp_path / "back", attn_implementation="eager", output_loading_info=True
    )
    assert not any(loading.values()), loading
    logits = [m.eval()(torch.tensor(tokens).long()).logits for m in (model, again)]
    assert torch.equal(*logits)
    for key in KEPT:
        assert getattr(again.config, key) == getattr(model.config, key)
    assert model_answers.load(tmp_path / "back")[0] == cfg


@pytest.mark.parametrize("new_names", [False, True])
def test_the_text_tower_of_a_model_that_sees_images(new_names, tmp_path):
    fields = {"rope_scaling": LINEAR | {"factor": 8.0}, "bos_token_id": 7}
    model = torch_models.random_gemma3_with_images(5, **fields)
    torch_models.save(model, tmp_path, max_shard_size="30KB")
    found = {
        name
        for path in tmp_path.glob("*.safetensors")
        for name in safetensors.read_header(path)
    }
    assert any(name.startswith("vision_tower.") for name in found)
    assert any(name.startswith("language_model.model.") for name in found)
    if new_names:
        _rename(tmp_path, "language_model.model.", "model.language_model.")
    cfg, params = model_answers.load(tmp_path)
    tokens, mask = torch_models.batch(5, [13, 6, 1], 90)
    ours = model_answers.answers(params, cfg, tokens, mask, new_tokens=1)["logprobs"]
    expected = torch_models.answers(model, tokens, mask, new_tokens=1)["logprobs"]
    assert np.abs(ours - expected)[mask].max() < 1e-4

    source = json.loads((tmp_path / "config.json").read_text())
    save_decoder(tmp_path / "text", cfg, params, source=source)
    text = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text").eval()
    assert type(text).__name__ == "Gemma3ForCausalLM" and text.config.bos_token_id == 7
    again = torch_models.answers(text, tokens, mask, new_tokens=1)["logprobs"]
    assert np.abs(again - expected)[mask].max() < 1e-4


def _rename(directory, old, new):
    """Other names for tensors of all shards and in the index."""
    for path in directory.glob("*.safetensors"):
        tensors = {k.replace(old, new): v for k, v in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    index = directory / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(old, new))


def test_bfloat16_survives_the_way_there_and_back(tmp_path):
    model = QWEN3(1, tie_word_embeddings=True).bfloat16()
    torch_models.save(model, tmp_path)
    cfg, params = model_answers.load(tmp_path, dtype="bfloat16")
    save_decoder(tmp_path / "back", cfg, params)
    again = type(model).from_pretrained(tmp_path / "back")
    assert again.dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
