"""What config.json of Gemma 3 leaves out."""

from blue.models import gemma3, qwen3

# --- config.json

TEXT = {"model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 4}


def test_class_defaults_fill_what_gemma_leaves_out():
    cfg = gemma3.from_config({"model_type": "gemma3", "text_config": TEXT})
    assert (cfg.width, cfg.num_layers) == (64, 4)
    assert (cfg.vocab_size, cfg.num_heads, cfg.num_kv_heads) == (262208, 8, 4)
    assert (cfg.head_size, cfg.window, cfg.norm_eps) == (256, 4096, 1e-6)
    assert cfg.tied and cfg.pattern == gemma3.PATTERN and cfg.query_scale == 0
    assert gemma3.from_config(TEXT | {"query_pre_attn_scalar": 64}).scale() == 1 / 8
    assert not qwen3.from_config({}).tied and qwen3.from_config({}).rope_theta == 1e4
