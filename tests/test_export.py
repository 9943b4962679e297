"""What a stage exports serves another run: weights, tokenizer, the same profiles."""

import json

import jax
import numpy as np
import pytest

from blue import export, queries, session, sources, train_encoder, warm_start
from blue.sharding import make_mesh
from blue.tokenizer import load_tokenizer
from configs import quickstart


def make_config():
    c = quickstart.get_config("tiny")
    c.warm_start.num_steps = c.train_encoder.num_steps = 1
    return c


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with an exported profiler and an exported encoder."""
    workdir = tmp_path_factory.mktemp("run")
    for stage in (train_encoder, warm_start):
        stage.run(make_config(), str(workdir))
    return workdir


def profiles(config, workdir, log, examples):
    """Model and profiles of ten users of `log`."""
    mesh = make_mesh(1, -1, 1)
    model = sources.load_profiler(config, log, workdir, mesh, "base")
    prompt_format = sources.prompt_format(config, model)
    rows = np.arange(10)
    ids = queries.profile_prompts(prompt_format, examples.train, rows, log.titles)
    generate = sources.make_generate(config, model, mesh, temperature=0.7)
    return model, ids, generate(ids, rows.tolist())


def test_the_export_is_the_profiler_of_the_workdir(run, tmp_path):
    config = make_config()
    log = sources.load_log(config, str(run))
    examples = sources.load_examples(config, log, str(run))
    model, ids, want = profiles(config, str(run), log, examples)
    config.profiler.checkpoint = str(run / "export/profiler")
    loaded, again, got = profiles(config, str(tmp_path), log, examples)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)
    assert loaded.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert loaded.cfg == model.cfg and again == ids and got == want
    assert len({profile.text for profile in got}) > 1
    assert not (tmp_path / "tokenizer").exists()  # the export brought its own


def test_the_encoder_is_exported_too(run, tmp_path):
    config = make_config()
    mesh, log = make_mesh(1, -1, 1), sources.load_log(config, str(run))
    model = sources.load_encoder(config, log, str(run), mesh)
    config.encoder.checkpoint = str(run / "export/encoder")
    loaded = sources.load_encoder(config, log, str(tmp_path), mesh)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)


def test_its_tokenizer_reads_another_log(run):
    """No word of these titles was in the log it was trained on."""
    tokenizer = load_tokenizer(run / "export/profiler")
    for title in ("Amélie (2001)", "千と千尋の神隠し", "Ran [乱] 🎬", "Ľúbezný"):
        ids = tokenizer.encode(title)
        assert tokenizer.decode(ids) == title and max(ids) < tokenizer.vocab_size


def test_a_later_export_replaces_the_earlier_one_and_what_a_kill_left(run, tmp_path):
    config = make_config()
    mesh, log = make_mesh(1, -1, 1), sources.load_log(config, str(run))
    model = sources.load_profiler(config, log, str(run), mesh, "base")
    checkpoints = sources.stage_checkpoints(config, str(run), "warm_start")
    (tmp_path / "export/.profiler.draft").mkdir(parents=True)
    (tmp_path / "export/.profiler.draft/rubbish").write_text("half a file")
    (tmp_path / "export/profiler").mkdir()
    (tmp_path / "export/profiler/of_an_earlier_stage").write_text("")
    about = session.about(
        config, log, sources.load_examples(config, log, str(run)), stage="warm_start"
    )
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
