"""The item table, and encoders of a config."""

import dataclasses
import sys

import jax
import numpy as np
import pytest

from blue.data.log import Log
from blue.hub.directory import save_decoder
from blue.inference import foreign
from blue.models import encoder as our_encoder
from blue.models import qwen3
from blue.models.params import make_init
from blue.runtime.sharding import make_mesh
from blue.sources import encoder as encoder_source
from blue.sources.encoder import load_item_table, load_text_encoder
from blue.sources.open_run import Run
from blue.sources.text import query_format_of
from blue.text.tokenizer import train_tokenizer
from tests.helpers.foreign_words import BASE, WORDS, foreign_config, module_of_words


@pytest.fixture
def module(tmp_path, monkeypatch):
    yield from module_of_words(tmp_path, monkeypatch)


# --- the item table


def catalogue(texts):
    fields = dict.fromkeys(Log._fields)
    return Log(**fields | {"texts": texts})


def test_the_item_table_is_kept_by_encoder_and_texts(module, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_source, "ITEMS_A_CALL", 5)
    log = catalogue([f"item number {i}" for i in range(12)])
    folder = tmp_path / "items"
    encoder = foreign.function(f"{module}:embed", **BASE)
    table = load_item_table(encoder, log, str(tmp_path))
    np.testing.assert_array_equal(table, encoder.embed(log.texts))
    calls = sys.modules[module].CALLS
    again = foreign.function(f"{module}:embed", **BASE)
    calls.clear()
    np.testing.assert_array_equal(load_item_table(again, log, str(tmp_path)), table)
    assert calls == [] and len(list(folder.iterdir())) == 1
    # other items, another limit, another source, other vectors of the same source
    load_item_table(again, catalogue(log.texts[1:]), str(tmp_path))
    sizes = BASE | {"max_tokens": 31}
    load_item_table(foreign.function(f"{module}:embed", **sizes), log, str(tmp_path))
    (tmp_path / f"{module}.py").write_text(WORDS + "\n# changed\n")
    load_item_table(foreign.function(f"{module}:embed", **BASE), log, str(tmp_path))
    assert len(list(folder.iterdir())) == 4
    loaded = sys.modules[module]
    old = loaded.embed
    loaded.embed = lambda texts: old(texts) ** 2 + 0.1
    load_item_table(foreign.function(f"{module}:embed", **BASE), log, str(tmp_path))
    assert len(list(folder.iterdir())) == 5


# --- which encoder


def test_a_transfer_encoder_of_our_own_is_its_checkpoint(module, tmp_path):
    mesh = make_mesh(1, -1, 1)
    c = foreign_config("function", f"{module}:embed")
    tokenizer = train_tokenizer(["red tent", "blue lamp"] * 9, vocab_size=512)
    size = -(-tokenizer.vocab_size // 8) * 8
    cfg = dataclasses.replace(qwen3.tiny_qwen3(), vocab_size=size)
    params = make_init(cfg, mesh, "float32")(np.uint32(1))
    folder = tmp_path / "other"
    save_decoder(folder, cfg, params)
    tokenizer.save(folder)
    c.evaluate.transfer.kind = "own"
    c.evaluate.transfer.checkpoint = str(folder)
    c.lock()
    load = lambda section: load_text_encoder(
        Run(c, str(tmp_path), mesh, catalogue(["red tent"])), section
    )
    encoder, other = load(c.encoder), load(c.evaluate.transfer)
    assert (encoder.name, encoder.width) == (f"{module}:embed", 48)
    assert (other.name, other.width) == (str(folder), cfg.width)
    assert other.max_tokens == c.encoder.max_tokens == 64
    assert other.num_tokens("red tent") == len(tokenizer.pooled("red tent"))
    ids = np.asarray([tokenizer.pooled("red tent")], np.int32)
    embed = jax.jit(our_encoder.embed, static_argnums=1)
    want = embed(params, cfg, ids, np.ones(ids.shape, bool))
    np.testing.assert_allclose(other.embed(["red tent"]), want, atol=1e-5)
    np.testing.assert_array_equal(
        other.start(["red tent"])(), other.embed(["red tent"])
    )
    assert c.encoder.kind == "function"  # the config stays as it was
    query_format = query_format_of(c, encoder)
    assert (query_format.max_tokens, query_format.num_tokens("two words")) == (64, 2)
