"""A made-up family, added exactly as blue/models/README.md says."""

import dataclasses
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blue.errors import UserError
from blue.hub import card, export, safetensors
from blue.hub.directory import read_config, save_decoder
from blue.hub.model import Model
from blue.hub.source import Source
from blue.models import decoder, families, lora
from blue.models.decoder import Lora
from blue.sources import adapters
from blue.text.tokenizer import train_tokenizer
from blue.workdir.checkpoints import Checkpoints
from tests.helpers import model_answers
from tests.helpers.recipes import (
    lines_of,
    promised_lines,
    python_blocks,
    readme_section,
)

RECIPE = readme_section("blue/models/README.md", "How to add a model family")
(MODULE,) = python_blocks(RECIPE)
(ENTRY,) = re.findall(r"table `FAMILIES`: `(.*)`$", RECIPE, re.M)
FLAG = "qk_norms=False"
# the recipe's, and what told Gemma 3 from Qwen3 before there was a table
FLAGS = pytest.mark.parametrize(
    "flag", [FLAG, pytest.param("norm_plus_one=True", marks=pytest.mark.slow)]
)


def add(monkeypatch, flag=FLAG):
    """The recipe's two steps; `flag` in the place of its own."""
    module = types.ModuleType("blue.models.plain")
    assert MODULE.count(FLAG) == 1
    exec(MODULE.replace(FLAG, flag), vars(module))
    for name, family in eval(f"{{{ENTRY}}}", {"plain": module}).items():
        monkeypatch.setitem(families.FAMILIES, name, family)


def random_params(cfg):
    """Random parameters under which norms matter, too."""
    params = jax.jit(decoder.init_params, static_argnums=0)(cfg, jax.random.key(3))
    rng = np.random.default_rng(4)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.2, x.shape).astype("f4"), params)


def test_the_recipe_has_the_promised_lines():
    added = "from blue.models import plain", ENTRY
    assert lines_of(MODULE, *added) == promised_lines("a model family")


def test_without_the_recipe_there_is_no_such_family(tmp_path):
    with pytest.raises(UserError, match="'tiny_plain' is not known; known are gemma3"):
        families.preset("tiny_plain")
    (tmp_path / "config.json").write_text('{"model_type": "plain"}')
    with pytest.raises(UserError, match="'plain'; supported are gemma3_text"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", ["gemma3", "qwen3", "plain"])
def test_a_family_has_what_the_table_promises(name, monkeypatch):
    add(monkeypatch)
    family = families.FAMILIES[name]
    assert isinstance(family, families.Family)
    for make in family.PRESETS:
        cfg = families.preset(make.__name__)
        assert cfg == make() and families.of(cfg) is family
        written = family.to_config(cfg)
        assert families.of_model_type(written["model_type"]) is family


@FLAGS
def test_it_is_saved_and_loaded(flag, tmp_path, monkeypatch):
    add(monkeypatch, flag)
    cfg = families.preset("tiny_plain")
    params = random_params(cfg)
    save_decoder(tmp_path, cfg, params)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "plain"
    tensors = safetensors.read_header(tmp_path / "model.safetensors")
    named = [name for name in tensors if "q_norm" in name or "k_norm" in name]
    assert len(named) == (2 * cfg.num_layers if cfg.qk_norms else 0)
    assert ("q_norm" in params["layers"]) == cfg.qk_norms

    again, loaded = model_answers.load(tmp_path)
    assert again == cfg and again.family == "plain"
    tokens, mask = jnp.arange(10).reshape(2, 5), jnp.ones((2, 5), bool)
    logits = lambda cfg, params: model_answers.logprobs(
        jax.tree.map(jnp.asarray, params), cfg, tokens, mask
    )
    found = logits(again, loaded)
    np.testing.assert_array_equal(found, logits(cfg, params))
    assert np.isfinite(found).all()


def test_a_tensor_that_has_no_name_is_found(tmp_path, monkeypatch):
    """A family with norms that its table of names forgets."""
    add(monkeypatch, "qk_norms=False, post_norms=True")
    cfg = families.preset("tiny_plain")
    with pytest.raises(AssertionError, match="post_attention_norm"):
        save_decoder(tmp_path, cfg, random_params(cfg))


@FLAGS
def test_its_export_has_its_licence_and_its_names(flag, tmp_path, monkeypatch):
    add(monkeypatch, flag)
    plain = families.preset("tiny_plain")
    cfg = dataclasses.replace(plain, lora=Lora(2, 8.0, ("q", "down")))
    params = random_params(cfg)
    frozen, trained = lora.split(params)
    base = tmp_path / "base"
    save_decoder(base, plain, frozen)
    tokenizer = train_tokenizer(["quiet books about rivers"] * 20, vocab_size=520)
    source = Source("base", "", str(base))
    model = Model(cfg, params, tokenizer, "base", source=source)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1, milestone_every=0)
    checkpoints.save_best(1, trained, adapters.adapter_note(model), 0.0)
    run = export.RunFacts(
        stage="profiler", config={"prompts": {"style": "full"}}, data="made up",
        fingerprint="0", validated=False, sampling_temperature=0.7,
        max_completion_tokens=9, max_tokens=64, query_prompt="",
    )  # fmt: skip
    export.write(checkpoints, model, tmp_path, "profiler", run)

    exported = tmp_path / "export/profiler"
    assert read_config(exported) == plain
    page = (exported / card.CARD).read_text()
    assert 'license: "other"\nlicense_name: "plain-terms"\n' in page
    assert "That of the model it began with: plain-terms." in page
    notice = (exported / "NOTICE").read_text()
    assert notice == f"Made from Plain.\n\n{card.MODIFIED}\n"
    assert "gemma" not in (page + notice).lower()

    folder = tmp_path / "export/profiler_adapter"
    found = safetensors.read_header(folder / "adapter_model.safetensors")
    assert {*found} == {
        f"base_model.model.model.layers.{n}.{module}.lora_{end}.weight"
        for n in range(plain.num_layers)
        for module in ("self_attn.q_proj", "mlp.down_proj")
        for end in "AB"
    }


@pytest.mark.parity
def test_without_norms_of_queries_and_keys_it_is_a_llama(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="needs the extra `parity`")
    from tests.helpers import torch_models

    add(monkeypatch)
    model = torch_models.random_llama(7)
    torch_models.save(model, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "plain"}))
    cfg, params = model_answers.load(tmp_path)
    tokens, mask = torch_models.batch(1, [13, 6, 1], cfg.vocab_size)
    found = model_answers.answers(params, cfg, tokens, mask, new_tokens=4)
    wanted = torch_models.answers(model, tokens, mask, new_tokens=4)
    gap = np.abs(found["logprobs"] - wanted["logprobs"])[mask]
    assert gap.max() < 1e-4
    np.testing.assert_array_equal(found["greedy"], wanted["greedy"])
