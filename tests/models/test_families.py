"""Presets, and the configs they are read from."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from blue.errors import UserError
from blue.models import decoder, families, gemma3, qwen3

# --- sizes


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gemma3_270m", 268_098_176),
        ("gemma3_1b", 999_885_952),
        ("gemma3_4b", 3_880_263_168),
        ("gemma3_12b", 11_766_034_176),
        ("gemma3_27b", 27_009_346_304),
        ("qwen3_0_6b", 596_049_920),
        ("qwen3_1_7b", 1_720_574_976),
        ("qwen3_4b", 4_022_468_096),
        ("qwen3_8b", 8_190_735_360),
        ("qwen3_14b", 14_768_307_200),
        ("qwen3_32b", 32_762_123_264),
        ("qwen3_embedding_0_6b", 595_776_512),
    ],
)
def test_presets_have_the_published_number_of_parameters(name, count):
    assert decoder.param_count(families.preset(name)) == count


@pytest.mark.parametrize(
    ("file", "preset"),
    [
        ("gemma-3-1b-it", gemma3.gemma3_1b),
        ("gemma-3-4b-it", gemma3.gemma3_4b),
        ("qwen3-0.6b", qwen3.qwen3_0_6b),
        ("qwen3-1.7b", qwen3.qwen3_1_7b),
        ("qwen3-embedding-0.6b", qwen3.qwen3_embedding_0_6b),
    ],
)
def test_released_configs_give_the_presets(file, preset):
    if "BLUE_TEST_DATA" not in os.environ:
        pytest.skip("needs BLUE_TEST_DATA, the folder with model_configs/")
    folder = Path(os.environ["BLUE_TEST_DATA"]) / "model_configs"
    config = json.loads((folder / f"{file}.config.json").read_text())
    family = families.of_model_type(config["model_type"])
    assert family.from_config(config) == preset()


@pytest.mark.parametrize("name", families.presets())
def test_presets_survive_their_config_json(name):
    cfg = families.preset(name)
    family = families.of(cfg)
    assert family == (gemma3 if "gemma3" in name else qwen3)
    assert family.from_config(json.loads(json.dumps(family.to_config(cfg)))) == cfg


def test_unknown_presets_are_told_the_known_ones():
    with pytest.raises(UserError, match=r"'gemma4'.*gemma3_1b.*qwen3_1_7b"):
        families.preset("gemma4")


@pytest.mark.parametrize("name", families.presets())
def test_a_description_without_later_fields_gets_them(name):
    """As a checkpoint of an older version has it."""
    whole = dataclasses.asdict(families.preset(name))
    later = families.later_fields({k: v for k, v in whole.items() if k != "family"})
    assert later == {"family": whole["family"]}
    assert families.later_fields(whole) == {}
    assert families.later_fields({"dim": 8})["lora"] is None


@pytest.mark.parametrize("value", ["bert", None, 7, ["gemma3_text"]])
def test_an_unknown_model_type_is_told_with_the_known_ones(value):
    with pytest.raises(UserError) as caught:
        families.of_model_type(value)
    assert str(caught.value).startswith(f"model_type is {value!r}; supported are ")
    assert "gemma3" in str(caught.value) and "qwen3" in str(caught.value)
