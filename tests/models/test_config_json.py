"""Fields of config.json, by the names of several releases."""

from blue.models import gemma3, qwen3
from blue.models.decoder import GLOBAL, LOCAL

# --- config.json

TEXT = {"model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 4}


def test_keys_of_transformers_5_mean_the_same():
    old = TEXT | {
        "rope_theta": 5e5,
        "rope_local_base_freq": 7e3,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 2,
    }
    new = TEXT | {
        "rope_parameters": {
            "full_attention": {"rope_theta": 5e5, "type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_theta": 7e3, "rope_type": "default"},
        },
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "_sliding_window_pattern": 6,
    }
    cfg = gemma3.from_config(old)
    assert gemma3.from_config(new) == cfg
    assert cfg.pattern == (LOCAL, GLOBAL)
    assert (cfg.rope_theta, cfg.rope_theta_local, cfg.rope_factor) == (5e5, 7e3, 8.0)

    scaling = {"rope_type": "linear", "factor": 4}
    cfg = qwen3.from_config({"rope_theta": 3e6, "rope_scaling": scaling})
    assert (cfg.rope_theta, cfg.rope_factor) == (3e6, 4.0)
    assert qwen3.from_config({"rope_parameters": scaling | {"rope_theta": 3e6}}) == cfg
