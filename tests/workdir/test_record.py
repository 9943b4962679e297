"""What is put down of a run."""

import pytest

from blue.errors import UserError
from blue.workdir import record
from configs import base


def test_secrets_are_redacted_and_tokens_of_text_are_not():
    config = base.get_config()
    with config.unlocked():
        config.hub_token = "abc"
        config.service = {
            "api_key": "abc",
            "url": "https://me:pw@host/x",
            "password": "",
        }
    config.profiler.tokenizer = "hub/tokenizer"
    config.profiler.checkpoint = "hf_" + "a" * 30
    found = record.redacted(config)
    assert found["hub_token"] == found["service"]["api_key"] == "[redacted]"
    assert found["service"]["url"] == "https://[redacted]@host/x"
    assert found["service"]["password"] == ""
    assert found["profiler"]["checkpoint"] == "[redacted]"
    assert found["profiler"]["tokenizer"] == "hub/tokenizer"
    assert found["max_prompt_tokens"] == 2048
    assert found["tokenizer"] == config.tokenizer.to_dict()


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"config": 3}'])
def test_what_is_no_run_is_told_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="config.json is no config of a run: ") as error:
        record.load(tmp_path)
    assert "\n" not in str(error.value)
