"""Old names of the config: refused where they are given, read where they were kept."""

import json

import pytest

from blue.errors import UserError
from blue.workdir import record, renamed, resume, settings
from configs import base, quickstart


def under_old_names(config):
    """As a run wrote it down before the judge had a section."""
    judge = config.pop("judge")
    old = {"reader": judge.pop("model"), **judge}
    config["rewards"]["choice"] |= old
    return config


def test_every_new_name_is_a_field_and_no_old_one_is():
    fields = dict(settings.leaves(base.get_config()))
    assert fields.keys() >= set(renamed.NEW_NAMES.values())
    assert not fields.keys() & renamed.NEW_NAMES.keys()


def test_an_old_name_is_told_the_new_one():
    renamed.refuse(["lr", "judge.model"], "here")
    with pytest.raises(UserError) as error:
        renamed.refuse(["lr", "rewards.choice.reader"], "here")
    assert str(error.value) == "here: rewards.choice.reader is now judge.model"


def test_a_config_that_was_kept_is_read_under_the_names_of_today(tmp_path):
    config = quickstart.get_config("tiny").to_dict()
    old = under_old_names(quickstart.get_config("tiny").to_dict())
    assert old["rewards"]["choice"]["reader"] == "reference" and "judge" not in old
    assert renamed.with_new_names(old) == config
    assert renamed.with_new_names(config) == config
    (tmp_path / "config.json").write_text(json.dumps({"config": old}))
    assert record.load(tmp_path).judge.to_dict() == config["judge"]


def test_a_run_begun_under_old_names_goes_on(caplog):
    note = lambda config: resume.note(
        config, model={}, tokenizer="t", data="d", fields=("batch_size",), devices=1
    )
    new = quickstart.get_config("tiny").to_dict()
    old = note(under_old_names(quickstart.get_config("tiny").to_dict()))
    resume.check(old, note(new), "checkpoints/profiler")
    assert not caplog.records
    new["judge"]["model"] = "policy"
    resume.check(old, note(new), "checkpoints/profiler")
    (told,) = caplog.messages
    assert told.endswith(': judge.model was "reference", is "policy"')
