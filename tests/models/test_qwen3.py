"""What config.json of Qwen3 leaves out, and what is refused."""

import pytest

from blue.errors import UserError
from blue.models import decoder, qwen3


def test_class_defaults_fill_what_qwen_leaves_out():
    cfg = qwen3.from_config({})
    assert (cfg.width, cfg.num_layers, cfg.vocab_size) == (4096, 32, 151_936)
    assert not cfg.tied and cfg.rope_theta == 1e4 and cfg.norm_eps == 1e-6
    assert qwen3.from_config({"tie_word_embeddings": True}).tied


def test_its_layers_have_no_windows_and_plain_norms():
    for make in qwen3.PRESETS:
        cfg = make()
        assert set(cfg.pattern) == {decoder.GLOBAL} and cfg.activation == "silu"
        assert not cfg.norm_plus_one and not cfg.post_norms


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_size": 0}, "hidden_size is 0"),
    ],
)
def test_what_it_cannot_be_is_refused(fields, told):
    with pytest.raises(UserError, match=told):
        qwen3.from_config(fields)


def test_the_licence_of_the_models_binds_nothing():
    assert qwen3.LICENCE == {} and qwen3.NOTICE == ""
