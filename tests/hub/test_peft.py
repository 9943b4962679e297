"""PEFT itself on our adapters, over a base that transformers loads. Needs torch."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from blue.hub import export
from blue.hub.directory import save_decoder
from blue.hub.model import Model
from blue.hub.source import Source
from blue.models import decoder, gemma3, lora, qwen3
from blue.models.decoder import Lora
from blue.sources import adapters
from blue.text.tokenizer import train_tokenizer
from blue.workdir.checkpoints import Checkpoints
from tests.helpers import model_answers

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
peft = pytest.importorskip("peft", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers")
from tests.helpers import torch_models  # noqa: E402

pytestmark = pytest.mark.parity

WORDS = ["red running shoes", "quiet books about rivers", "Amélie (2001)", "garden"]
TOKENIZER = train_tokenizer(WORDS * 20, vocab_size=520)
SMALL = {"vocab_size": 530, "width": 32, "mlp_width": 48, "head_size": 8}


def write(directory, cfg, role, save=save_decoder):
    """A base, and the export of `role` that was trained on it; merged, its cfg."""
    params = decoder.init_params(cfg, jax.random.key(3))
    frozen, trained = lora.split(params)
    rng = np.random.default_rng(4)
    noise = lambda x: jax.numpy.asarray(rng.normal(0, 0.3, x.shape), x.dtype)
    trained = jax.tree.map(noise, trained)
    base = str(directory / "base")
    save(base, lora.without(cfg), frozen)
    model = Model(
        cfg,
        lora.join(frozen, trained),
        TOKENIZER,
        "base",
        source=Source(base, "", base),
    )
    checkpoints = Checkpoints(directory / "c", keep=1, milestone_every=0)
    checkpoints.save_best(1, trained, adapters.adapter_note(model), 0.0)
    about = export.RunFacts(
        stage=role, config={"prompts": {"style": "full"}}, data="made up",
        fingerprint="0", validated=False, sampling_temperature=0.7,
        max_completion_tokens=9, max_tokens=64, query_prompt="",
    )  # fmt: skip
    export.write(checkpoints, model, directory, role, about)
    return lora.merge(model.params, cfg), lora.without(cfg)


def check_loaded(model, cfg, folder):
    """Every tensor of the file is in the model, and every adapter from the file."""
    from safetensors.torch import load_file

    in_file = load_file(folder / "adapter_model.safetensors")
    in_model = peft.get_peft_model_state_dict(model)
    assert in_file.keys() == in_model.keys()
    assert len(in_file) == 2 * cfg.num_layers * len(cfg.lora.targets)
    assert all(torch.equal(in_file[name], in_model[name]) for name in in_file)


@pytest.mark.parametrize("targets", [lora.TARGETS, ("q", "o", "down")], ids=str)
def test_a_profiler(tmp_path, targets):
    cfg = dataclasses.replace(
        gemma3.tiny_gemma3(), **SMALL, num_layers=7, window=5,
        lora=Lora(4, 6.0, targets),
    )  # fmt: skip
    params, plain = write(tmp_path, cfg, "profiler")
    folder = tmp_path / "export/profiler_adapter"
    said = json.loads((folder / "adapter_config.json").read_text())
    base = transformers.AutoModelForCausalLM.from_pretrained(
        said["base_model_name_or_path"], attn_implementation="eager"
    )
    tokens, mask = torch_models.batch(1, [13, 6, 1], cfg.vocab_size)
    before = torch_models.answers(base.eval(), tokens, mask, new_tokens=4)
    model = peft.PeftModel.from_pretrained(base, folder).eval()
    check_loaded(model, cfg, folder)
    found = torch_models.answers(model, tokens, mask, new_tokens=4)
    wanted = model_answers.answers(params, plain, tokens, mask, new_tokens=4)
    gap = lambda a, b: np.abs(a["logprobs"] - b["logprobs"])[mask].max()
    assert gap(found, wanted) < 1e-4 < 0.1 < gap(before, wanted)
    np.testing.assert_array_equal(found["greedy"], wanted["greedy"])


def test_an_encoder(tmp_path):
    cfg = dataclasses.replace(
        qwen3.tiny_qwen3(), **SMALL, num_layers=2, lora=Lora(2, 8.0, lora.TARGETS)
    )
    params, plain = write(tmp_path, cfg, "encoder")
    folder = tmp_path / "export/encoder_adapter"
    base = transformers.AutoModel.from_pretrained(
        tmp_path / "base", attn_implementation="eager"
    )
    model = peft.PeftModel.from_pretrained(base, folder).eval()
    check_loaded(model, cfg, folder)
    assert isinstance(model, peft.PeftModelForFeatureExtraction)
    tokens, mask = torch_models.batch(2, [13, 6, 1], cfg.vocab_size)
    positions = torch.tensor(np.maximum(np.cumsum(mask, 1) - 1, 0))
    with torch.no_grad():
        states = model(
            input_ids=torch.tensor(tokens).long(),
            attention_mask=torch.tensor(mask).long(),
            position_ids=positions,
        ).last_hidden_state
    found = torch.nn.functional.normalize(states[:, -1], dim=-1).numpy()
    wanted = model_answers.answers(params, plain, tokens, mask, new_tokens=1)
    np.testing.assert_allclose(found, wanted["embeddings"], atol=1e-4)


def test_the_text_tower_of_a_multimodal_base(tmp_path):
    """The names of the tower's matrices, and none of the vision tower's."""
    cfg = dataclasses.replace(
        gemma3.tiny_gemma3(), **SMALL, num_layers=2, lora=Lora(2, 8.0, ("q", "down"))
    )
    text = {
        "vocab_size": 530, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    both = transformers.Gemma3Config(text_config=text, vision_config=vision)

    def save(directory, cfg, params):
        transformers.Gemma3ForConditionalGeneration(both).save_pretrained(directory)

    write(tmp_path, cfg, "profiler", save)
    folder = tmp_path / "export/profiler_adapter"
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(base, folder)
    check_loaded(model, cfg, folder)
    adapted = [name for name, _ in model.named_modules() if name.endswith("lora_A")]
    assert len(adapted) == 4 and all("language_model" in name for name in adapted)
