"""Formats and tokenizers of a config."""

import pytest
from etils import epath

from blue.errors import UserError
from blue.inference.embed import TextEncoder
from blue.sources.data import load_log
from blue.sources.open_run import Run, mesh_of, open_run
from blue.sources.text import load_role_tokenizer, query_format_of, templates_of
from blue.text import tokenizer
from blue.text.templates import TEMPLATES
from blue.text.tokenizer import train_tokenizer
from configs import quickstart


@pytest.fixture
def config():
    return quickstart.get_config("tiny")


def encoder(query_prompt):
    none = lambda texts: pytest.fail("nothing is embedded")
    return TextEncoder(none, none, len, 40, 3, "ours", "", query_prompt)


def test_the_style_names_the_wording(config):
    for style in ("full", "short"):
        config.prompts.style = style
        assert templates_of(config) is TEMPLATES[style]


@pytest.mark.parametrize(
    "instruction, own, prefix, told",
    [
        ("", None, "", False),
        ("Find it", None, "Instruct: Find it\nQuery:", False),
        ("@encoder", "q: ", "q: ", False),
        ("@encoder", "", "", False),  # it says that there is none
        ("Find it", "q: ", "Instruct: Find it\nQuery:", True),
        ("Find it", "Instruct: Find it\nQuery:", "Instruct: Find it\nQuery:", False),
    ],
)
def test_what_stands_before_a_query(config, caplog, instruction, own, prefix, told):
    caplog.set_level("INFO", "blue")
    config.prompts.instruction = instruction
    found = query_format_of(config, encoder(own))
    assert found.prefix == prefix and found.max_tokens == 40
    assert found.recent_items == config.prompts.recent_items
    assert ("its own query prompt is 'q: '" in caplog.text) == told


def test_an_encoder_without_a_prompt_cannot_be_asked_for_its_own(config):
    config.prompts.instruction = "@encoder"
    with pytest.raises(UserError, match="encoder ours brings no query prompt"):
        query_format_of(config, encoder(None))


def test_a_named_tokenizer_comes_before_the_checkpoints(config, tmp_path):
    named, of_checkpoint = (
        train_tokenizer([line] * 9, vocab_size=512) for line in ("red", "blue")
    )
    named.save(tmp_path / "named")
    of_checkpoint.save(tmp_path / "checkpoint")
    run = open_run(config, str(tmp_path / "run"))
    load = lambda: load_role_tokenizer(run, "encoder", str(tmp_path / "checkpoint"))
    assert load().fingerprint == of_checkpoint.fingerprint
    config.encoder.tokenizer = str(tmp_path / "named")
    assert load().fingerprint == named.fingerprint
    assert not (tmp_path / "run").exists()  # none was trained


def test_without_one_both_roles_share_the_one_of_the_catalogue(config, tmp_path):
    run = open_run(config, str(tmp_path))
    found = [load_role_tokenizer(run, r, "") for r in ("profiler", "encoder")]
    assert found[0].fingerprint == found[1].fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]
    title = run.log.titles[0]
    assert found[0].decode(found[0].encode(title)) == title
    assert len(found[0].encode(title)) <= 2 * len(title.split())


def test_a_tokenizer_torn_by_a_kill_is_not_taken(tmp_path, monkeypatch):
    """Half of it may well load, and every id of every later model would be another."""
    c = quickstart.get_config("tiny")
    log = load_log(c, str(tmp_path))
    save = tokenizer.Tokenizer.save

    def torn(self, directory):
        save(self, directory)
        (epath.Path(directory) / "tokenizer_config.json").unlink()
        raise KeyboardInterrupt  # as good as a kill: nothing of ours catches it

    with monkeypatch.context() as patch:
        patch.setattr(tokenizer.Tokenizer, "save", torn)
        with pytest.raises(KeyboardInterrupt):
            load_role_tokenizer(Run(c, str(tmp_path), mesh_of(c), log), "profiler", "")
    assert not (tmp_path / "tokenizer").exists()
    again = load_role_tokenizer(Run(c, str(tmp_path), mesh_of(c), log), "profiler", "")
    assert again.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]
