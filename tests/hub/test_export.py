"""What a stage exports serves another run: weights, tokenizer, the same profiles."""

import json
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.repocard import metadata_load
from safetensors import safe_open

from blue.errors import UserError
from blue.hub import card, export, sentence_layout
from blue.hub.directory import read_config, read_source
from blue.hub.source import Source, _download
from blue.models import gemma3
from blue.runtime.sharding import make_mesh
from blue.sources.data import load_examples, load_log
from blue.sources.encoder import load_encoder, own_encoder
from blue.sources.open_run import Run, open_run
from blue.sources.profiler import load_profiler, make_generate
from blue.sources.role import stage_checkpoints
from blue.sources.text import own_query_format_of, prompt_format_of, query_format_of
from blue.text import queries
from blue.text.tokenizer import load_tokenizer, train_tokenizer
from blue.training import session
from tests.helpers.small_stages import (
    end_stages,
    one_layer,  # noqa: F401
    one_step_config,
)

pytestmark = pytest.mark.usefixtures("one_layer")
TEXTS = ["Amélie (2001), ran  [乱] 🎬", "hello\nthere", "", "x" * 300]


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_layer):  # noqa: F811
    """A workdir with an exported profiler and an exported encoder."""
    workdir = tmp_path_factory.mktemp("run")
    end_stages(one_step_config(), workdir)
    return workdir


def profiles(config, workdir, log, examples):
    """Model and profiles of ten users of `log`."""
    mesh = make_mesh(1, -1, 1)
    model = load_profiler(Run(config, workdir, mesh, log), "base")
    prompt_format = prompt_format_of(config, model)
    rows = np.arange(10)
    ids = queries.profile_prompts(prompt_format, examples.train, rows, log.titles)
    generate = make_generate(config, model, mesh, temperature=0.7)
    return model, ids, generate(ids, rows.tolist())


def test_the_export_is_the_profiler_of_the_workdir(run, tmp_path):
    config = one_step_config()
    log = load_log(config, str(run))
    examples = load_examples(config, log, str(run))
    model, ids, want = profiles(config, str(run), log, examples)
    config.profiler.checkpoint = str(run / "export/profiler")
    loaded, again, got = profiles(config, str(tmp_path), log, examples)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)
    assert loaded.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert loaded.cfg == model.cfg and again == ids and got == want
    assert len({profile.text for profile in got}) > 1
    assert not (tmp_path / "tokenizer").exists()  # the export brought its own


def test_the_encoder_is_exported_too(run, tmp_path):
    config = one_step_config()
    mesh, log = make_mesh(1, -1, 1), load_log(config, str(run))
    model = load_encoder(Run(config, str(run), mesh, log))
    config.encoder.checkpoint = str(run / "export/encoder")
    loaded = load_encoder(Run(config, str(tmp_path), mesh, log))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)


def test_its_tokenizer_reads_another_log(run):
    """No word of these titles was in the log it was trained on."""
    tokenizer = load_tokenizer(run / "export/profiler")
    for title in ("Amélie (2001)", "千と千尋の神隠し", "Ran [乱] 🎬", "Ľúbezný"):
        ids = tokenizer.encode(title)
        assert tokenizer.decode(ids) == title and max(ids) < tokenizer.vocab_size


def test_a_later_export_replaces_the_earlier_one_and_what_a_kill_left(run, tmp_path):
    config = one_step_config()
    mesh, log = make_mesh(1, -1, 1), load_log(config, str(run))
    model = load_profiler(Run(config, str(run), mesh, log), "base")
    checkpoints = stage_checkpoints(config, str(run), "warm_start")
    (tmp_path / "export/.profiler.draft").mkdir(parents=True)
    (tmp_path / "export/.profiler.draft/rubbish").write_text("half a file")
    (tmp_path / "export/profiler").mkdir()
    (tmp_path / "export/profiler/of_an_earlier_stage").write_text("")
    about = session.facts(Run(config, str(run), mesh, log), "warm_start")
    export.write(checkpoints, model, tmp_path, "profiler", about)
    assert [p.name for p in (tmp_path / "export").iterdir()] == ["profiler"]
    assert sorted(p.name for p in (tmp_path / "export/profiler").iterdir()) == [
        "README.md", "chat_template.jinja", "config.json", "generation_config.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "training_config.json",
    ]  # fmt: skip
    said = json.loads((tmp_path / "export/profiler/config.json").read_text())
    assert said["eos_token_id"] == list(model.tokenizer.end_ids)
    assert said["vocab_size"] == model.cfg.vocab_size


# --- what is in an export, and what comes of it as a checkpoint


def export_again(config, run, model, workdir, role, stage):
    """The same parameters, of a model that was loaded from an export."""
    opened = open_run(config, str(run))
    about = session.facts(opened, stage, query_prompt="Q: ")
    checkpoints = stage_checkpoints(config, str(run), stage)
    export.write(checkpoints, model, workdir, role, about)
    return workdir / "export" / role


def test_there_and_back_is_exact(run, tmp_path):
    """Loaded, exported, loaded, exported: every file to the byte."""
    config = one_step_config()
    mesh, log = make_mesh(1, -1, 1), load_log(config, str(run))
    for role, stage in (("profiler", "warm_start"), ("encoder", "encoder")):
        first = run / "export" / role
        config[role].checkpoint = str(first)
        if role == "profiler":
            model = load_profiler(Run(config, str(run), mesh, log), "base")
        else:
            model = load_encoder(Run(config, str(run), mesh, log))
        assert model.source == Source(str(first), "", str(first))
        again = export_again(config, run, model, tmp_path, role, stage)
        of = lambda folder: {
            str(p.relative_to(folder)): p.read_bytes()
            for p in folder.rglob("*")
            if p.is_file() and p.name not in (card.CARD, card.FACTS)
        }
        one, other = of(first), of(again)
        if role == "encoder":
            prompts = json.loads(other.pop(sentence_layout.PROMPTS))
            assert prompts["prompts"] == {"query": "Q: ", "document": ""}
            del one[sentence_layout.PROMPTS]
        assert one == other
        facts = json.loads((again / card.FACTS).read_text())
        assert facts["random_weights"] and facts["licence"] == {}
        assert facts["checkpoint"] == str(first)


def test_the_profiler_is_what_vllm_and_transformers_look_for(run):
    """gemma3.py of vLLM reads these fields; vLLM itself is not run here."""
    from transformers import AutoConfig, GenerationConfig

    directory = run / "export/profiler"
    config = AutoConfig.from_pretrained(directory)
    cfg = read_config(directory)
    assert config.architectures == ["Gemma3ForCausalLM"]
    assert config.query_pre_attn_scalar == cfg.head_size == config.head_dim
    assert config.sliding_window == cfg.window and config.max_position_embeddings > 1000
    assert config.hidden_activation == "gelu_pytorch_tanh" and not config.attention_bias
    assert [kind.split("_")[0] for kind in config.layer_types] == [
        "sliding" if cfg.kind(n) == "local" else "full" for n in range(cfg.num_layers)
    ]
    rope = config.rope_parameters
    assert rope["full_attention"]["rope_theta"] == cfg.rope_theta
    assert rope["sliding_attention"]["rope_theta"] == cfg.rope_theta_local
    old = read_source(directory)  # as releases of 2025 read them
    assert {"rope_theta", "rope_local_base_freq", "sliding_window_pattern"} <= {*old}
    with safe_open(directory / "model.safetensors", "np") as file:
        names = file.keys()
    assert config.tie_word_embeddings and "lm_head.weight" not in names
    assert all(name.startswith("model.") for name in names)
    sampling = GenerationConfig.from_pretrained(directory)
    assert sampling.do_sample and sampling.temperature == 0.7
    assert (sampling.top_k, sampling.top_p) == (0, 1.0)  # transformers' own is 50
    tokenizer = load_tokenizer(directory)
    assert sampling.eos_token_id == list(tokenizer.end_ids)


def test_the_encoder_says_what_it_was_trained_with(run):
    from transformers import AutoConfig

    directory = run / "export/encoder"
    c = one_step_config()
    assert sentence_layout.read(directory) == (
        str(directory), "", "", c.encoder.max_tokens,
    )  # fmt: skip
    config = AutoConfig.from_pretrained(directory)
    assert config.architectures == ["Qwen3ForCausalLM"]
    assert config.rope_parameters["rope_theta"] == read_config(directory).rope_theta
    assert config.head_dim == read_config(directory).head_size
    fields = json.loads((directory / "1_Pooling/config.json").read_text())
    assert [k for k, v in fields.items() if v is True] == [
        "pooling_mode_lasttoken", "include_prompt",
    ]  # fmt: skip


def check_tokenizer(tokenizer, directory):
    """AutoTokenizer on the files of an encoder's export gives our ids."""
    from transformers import AutoTokenizer

    tokenizer.save(directory, pooled=True)
    loaded = AutoTokenizer.from_pretrained(directory)
    assert loaded.padding_side == "left"
    assert [*loaded(TEXTS).input_ids] == tokenizer.pooled_batch(TEXTS)
    for text in TEXTS:
        ids = loaded.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            enable_thinking=False,
            return_dict=False,
        )
        assert ids == tokenizer.chat(text)
        plain = loaded(text, add_special_tokens=False).input_ids
        assert plain == tokenizer.encode(text)
    again = load_tokenizer(directory)
    assert again.pooled_batch(TEXTS) == tokenizer.pooled_batch(TEXTS)
    assert again.chat_batch(TEXTS) == tokenizer.chat_batch(TEXTS)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("gemma3", marks=pytest.mark.slow),
        pytest.param("qwen3", marks=pytest.mark.slow),
        pytest.param("qwen3_embedding", marks=pytest.mark.slow),
    ],
)
def test_real_tokenizers_are_exported(name, tmp_path):
    if not os.environ.get("BLUE_TEST_DATA"):
        pytest.skip("needs BLUE_TEST_DATA, the folder with tokenizers/")
    folder = Path(os.environ["BLUE_TEST_DATA"]) / "tokenizers" / name
    check_tokenizer(load_tokenizer(folder), tmp_path)


def test_our_tokenizer_is_exported(tmp_path):
    tokenizer = train_tokenizer(["red shoes", "blue hats"] * 50, vocab_size=520)
    check_tokenizer(tokenizer, tmp_path)


def test_a_tokenizer_that_lost_its_last_step_gets_it_back(tmp_path):
    """Other tools drop the post-processor; whoever loads the export needs it."""
    from transformers import AutoTokenizer

    tokenizer = train_tokenizer(["red shoes"] * 50, vocab_size=520)
    tokenizer.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    lost = load_tokenizer(tmp_path)
    lost.save(tmp_path / "out", pooled=True)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded("red shoes").input_ids == tokenizer.pooled("red shoes")


# --- the query prompt


def query_prefix(run, tmp_path, instruction, content):
    """The prefix with which an encoder checkpoint is asked."""
    shutil.copytree(run / "export/encoder", tmp_path / "encoder")
    if content is None:
        (tmp_path / "encoder/config_sentence_transformers.json").unlink()
    else:
        sentence_layout.write(
            tmp_path / "encoder", width=64, max_tokens=32, query_prompt=content
        )
    config = one_step_config()
    config.prompts.instruction = instruction
    config.encoder.checkpoint = str(tmp_path / "encoder")
    log = load_log(config, str(run))
    model = load_encoder(Run(config, str(run), make_mesh(1, -1, 1), log))
    encoder = own_encoder(config, model, make_mesh(1, -1, 1))
    prefix = own_query_format_of(config, model).prefix
    assert query_format_of(config, encoder).prefix == prefix
    return prefix


def test_the_checkpoints_own_query_prompt(run, tmp_path, caplog):
    caplog.set_level("INFO", "blue")
    prompt = "task: search | query: "
    assert query_prefix(run, tmp_path, "@encoder", prompt) == prompt
    assert "made for texts of at most 32 tokens (max_seq_length)" in caplog.text
    assert "its own query prompt" not in caplog.text


def test_another_prompt_than_the_checkpoints_is_told(run, tmp_path, caplog):
    caplog.set_level("INFO", "blue")
    found = query_prefix(run, tmp_path, "Find it", "Instruct: Find\nQuery:")
    assert found == "Instruct: Find it\nQuery:"
    assert r"own query prompt is 'Instruct: Find\nQuery:', ours 'Inst" in caplog.text


def test_an_encoder_without_a_prompt_of_its_own(run, tmp_path):
    with pytest.raises(UserError, match="prompts.instruction=@encoder: .*brings no"):
        query_prefix(run, tmp_path, "@encoder", None)


# --- where it comes from, and whose it is


def test_a_model_of_the_hub_is_named_on_the_card(run, tmp_path, monkeypatch):
    commit = "a" * 40
    repo = tmp_path / "models--some--gemma"
    shutil.copytree(run / "export/profiler", repo / "snapshots" / commit)
    (repo / "snapshots" / commit / card.FACTS).unlink()
    (repo / "snapshots" / commit / card.CARD).unlink()
    raw = repo / "snapshots" / commit / "config.json"
    fields = {
        "max_position_embeddings": 1234,
        "eos_token_id": [1],
        "pad_token_id": None,
    }
    raw.write_text(json.dumps(json.loads(raw.read_text()) | fields))
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    _download.cache_clear()
    config = one_step_config()
    config.profiler.checkpoint = "some/gemma"
    log = load_log(config, str(run))
    model = load_profiler(Run(config, str(run), make_mesh(1, -1, 1), log), "base")
    _download.cache_clear()
    made = export_again(config, run, model, tmp_path, "profiler", "warm_start")
    page = (made / card.CARD).read_text()
    head = metadata_load(made / card.CARD)
    assert head["base_model"] == "some/gemma" and head["license"] == "gemma"
    assert f"Began with: some/gemma, commit {commit}" in page
    assert "Not evaluated yet." in page and "max_new_tokens=" in page
    notice = (made / "NOTICE").read_text()
    assert gemma3.NOTICE in notice and "modified" in notice
    written = json.loads((made / "config.json").read_text())
    assert written["max_position_embeddings"] == 1234
    assert written["eos_token_id"] == [1] and written["pad_token_id"] == 0
    # and what is made from that keeps base and licence
    second = Source(str(made), "", str(made))
    assert card.base_model(second) == "some/gemma"
    assert card.licence(second, unstated=gemma3.LICENCE) == {
        "license": "gemma", "license_link": "https://ai.google.dev/gemma/terms",
    }  # fmt: skip
    (tmp_path / "next").mkdir()
    card.copy_notices(second, tmp_path / "next", notice=gemma3.NOTICE)
    assert (tmp_path / "next/NOTICE").read_text() == notice


def test_names_cannot_break_the_card(run):
    facts = json.loads((run / "export/profiler" / card.FACTS).read_text())
    hostile = "a\n# b <script> [x](y) | `c`\n---\nlicense: mit"
    facts |= {"data": hostile, "checkpoint": hostile, "model": hostile}
    page = card.render(facts, "")
    plain = card.render(facts | {"data": "a", "checkpoint": "a", "model": "a"}, "")
    assert page.count("\n") == plain.count("\n") and "<script" not in page
    assert re.findall("^#.*", page, re.M) == re.findall("^#.*", plain, re.M)
    facts["validation"] = 0.1234
    assert "NDCG@10 on validation users: 0.123" in card.render(facts, "")
