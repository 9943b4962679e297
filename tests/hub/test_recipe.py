import json
import math

import pytest

from blue.errors import UserError
from blue.hub.card import FACTS
from blue.hub.recipe import EncoderRecipe, ProfilerRecipe, of_encoder, of_profiler
from configs import base, quickstart


def write_facts(directory, role, config):
    (directory / FACTS).write_text(json.dumps({"role": role, "config": config}))
    return directory


def read_profiler(directory, **given):
    return of_profiler(directory, given, ProfilerRecipe())


def test_a_directory_that_says_nothing_is_used_as_base_has_it(tmp_path):
    c = base.get_config()
    assert read_profiler(tmp_path) == ProfilerRecipe(
        prompt_style=c.prompts.style,
        history_items=c.prompts.history_items,
        max_prompt_tokens=c.max_prompt_tokens,
        prompt_buckets=c.prompt_buckets,
        sampling_temperature=c.evaluate.sampling_temperature,
        params_dtype=c.dtype.params,
        compute_dtype=c.dtype.compute,
    )
    recipe = of_encoder(tmp_path, {}, EncoderRecipe())
    assert recipe == EncoderRecipe(
        recent_items=c.prompts.recent_items, max_tokens=c.encoder.max_tokens
    )


def test_an_export_says_all_that_its_run_used(tmp_path):
    c = quickstart.get_config()
    config = json.loads(json.dumps(c.to_dict()))
    assert read_profiler(write_facts(tmp_path, "profiler", config)) == ProfilerRecipe(
        prompt_style="short",
        history_items=16,
        max_prompt_tokens=84,
        prompt_buckets=(84,),
        max_completion_tokens=24,
    )
    write_facts(tmp_path, "encoder", config)
    assert of_encoder(tmp_path, {}, EncoderRecipe()) == EncoderRecipe(
        prompt_style="short", max_tokens=80, row_lengths=(24, 80, 192)
    )


def test_the_callers_values_count_most(tmp_path):
    config = json.loads(json.dumps(quickstart.get_config().to_dict()))
    del config["prompts"]["style"]
    write_facts(tmp_path, "profiler", config)
    given = {"prompt_style": "full", "batch_size": 3, "sampling_temperature": 0}
    recipe = read_profiler(tmp_path, max_prompt_tokens=100, **given)
    assert recipe.prompt_buckets == (84, 100) and recipe.batch_size == 3
    assert recipe.sampling_temperature == 0 and recipe.prompt_style == "full"
    assert read_profiler(tmp_path, max_prompt_tokens=50, **given).prompt_buckets == (
        50,
    )
    shorter = of_encoder(tmp_path.parent, {"max_tokens": 100}, EncoderRecipe())
    assert shorter.row_lengths == (32, 100, 128, 512)


@pytest.mark.parametrize(
    "given, told",
    [
        ({"temperature": 1}, "temperature is no setting of a profiler; known are prom"),
        (
            {"prompt_style": "long"},
            "prompt_style is 'long', must be one of full, short",
        ),
        ({"batch_size": 0}, "batch_size is 0, must be a whole number of 1 to 1048576"),
        ({"batch_size": True}, "batch_size is True, must be a whole number"),
        ({"sampling_temperature": -1}, "sampling_temperature is -1, must be a number"),
        ({"prompt_buckets": ()}, "prompt_buckets is (), must be whole numbers of 1"),
        ({"params_dtype": ["float32"]}, "must be one of float32, bfloat16"),
    ],
)
def test_impossible_settings_are_one_line(tmp_path, given, told):
    with pytest.raises(UserError) as caught:
        read_profiler(tmp_path, **given)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"max_prompt_tokens": 10**12}, "max_prompt_tokens is 1000000000000, must be"),
        ({"max_prompt_tokens": True}, "config.max_prompt_tokens is True"),
        ({"prompts": []}, "config.prompts.style is missing; give prompt_style=..."),
        ({"prompt_buckets": ["1"]}, "config.prompt_buckets is ['1']"),
        ({"evaluate": {"sampling_temperature": math.nan}}, "is nan, must be a number"),
    ],
)
def test_a_strangers_training_config_is_checked(tmp_path, change, told):
    config = json.loads(json.dumps(quickstart.get_config().to_dict())) | change
    write_facts(tmp_path, "profiler", config)
    with pytest.raises(UserError) as caught:
        read_profiler(tmp_path)
    assert told in str(caught.value) and FACTS in str(caught.value)


@pytest.mark.parametrize(
    "text, told",
    [
        ("[" * 10**5, "not JSON"),
        ("[]", "must be a JSON object"),
        ('{"config": 3}', "must be a JSON object"),
        ('{"role": "encoder", "config": {}}', "role is 'encoder'; a profiler is asked"),
    ],
)
def test_another_file_is_one_line(tmp_path, text, told):
    (tmp_path / FACTS).write_text(text)
    with pytest.raises(UserError) as caught:
        read_profiler(tmp_path)
    assert told in str(caught.value)
