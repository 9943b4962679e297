"""Qwen3 dense and Qwen3-Embedding: presets, config.json, and their tensors' names.

https://arxiv.org/abs/2505.09388 and https://arxiv.org/abs/2506.05176; dimensions from
the released config.json files.
"""

from collections.abc import Mapping
from typing import Any

from blue.models.config_json import linear_scaling, only, rope, sizes
from blue.models.decoder import DecoderConfig

# --- presets


def qwen3_0_6b() -> DecoderConfig:
    """Qwen3-0.6B: 596,049,920 parameters."""
    return DecoderConfig(
        vocab_size=151936, width=1024, mlp_width=3072, num_layers=28, num_heads=16,
        num_kv_heads=8, head_size=128,
    )  # fmt: skip


def qwen3_1_7b() -> DecoderConfig:
    """Qwen3-1.7B, the paper's second profiler: 1,720,574,976 parameters."""
    return DecoderConfig(
        vocab_size=151936, width=2048, mlp_width=6144, num_layers=28, num_heads=16,
        num_kv_heads=8, head_size=128,
    )  # fmt: skip


def qwen3_4b() -> DecoderConfig:
    """Qwen3-4B: 4,022,468,096 parameters."""
    return DecoderConfig(
        vocab_size=151936, width=2560, mlp_width=9728, num_layers=36, num_heads=32,
        num_kv_heads=8, head_size=128,
    )  # fmt: skip


def qwen3_8b() -> DecoderConfig:
    """Qwen3-8B: 8,190,735,360 parameters; from this size on the head is its own."""
    return DecoderConfig(
        vocab_size=151936, width=4096, mlp_width=12288, num_layers=36, num_heads=32,
        num_kv_heads=8, head_size=128, tied=False,
    )  # fmt: skip


def qwen3_14b() -> DecoderConfig:
    """Qwen3-14B: 14,768,307,200 parameters."""
    return DecoderConfig(
        vocab_size=151936, width=5120, mlp_width=17408, num_layers=40, num_heads=40,
        num_kv_heads=8, head_size=128, tied=False,
    )  # fmt: skip


def qwen3_32b() -> DecoderConfig:
    """Qwen3-32B: 32,762,123,264 parameters."""
    return DecoderConfig(
        vocab_size=151936, width=5120, mlp_width=25600, num_layers=64, num_heads=64,
        num_kv_heads=8, head_size=128, tied=False,
    )  # fmt: skip


def qwen3_embedding_0_6b() -> DecoderConfig:
    """Qwen3-Embedding-0.6B, the paper's encoder: 595,776,512 parameters.

    A decoder pooled at its last token.
    """
    return DecoderConfig(
        vocab_size=151669, width=1024, mlp_width=3072, num_layers=28, num_heads=16,
        num_kv_heads=8, head_size=128,
    )  # fmt: skip


def qwen3_embedding_4b() -> DecoderConfig:
    """Qwen3-Embedding-4B: vectors of 2560."""
    return DecoderConfig(
        vocab_size=151665, width=2560, mlp_width=9728, num_layers=36, num_heads=32,
        num_kv_heads=8, head_size=128,
    )  # fmt: skip


def qwen3_embedding_8b() -> DecoderConfig:
    """Qwen3-Embedding-8B: vectors of 4096. Encoders need no head: none here."""
    return DecoderConfig(
        vocab_size=151665, width=4096, mlp_width=12288, num_layers=36, num_heads=32,
        num_kv_heads=8, head_size=128,
    )  # fmt: skip


def tiny_qwen3() -> DecoderConfig:
    """The quickstart's encoder."""
    return DecoderConfig(
        vocab_size=1024, width=64, mlp_width=128, num_layers=2, num_heads=4,
        num_kv_heads=2, head_size=16, rope_theta=1e4,
    )  # fmt: skip


# --- the checkpoint's side

# Name after the prefix, {} the layer -> path in our tree, number of leading axes of our
# array that are inputs (the file has [outputs, inputs]; 0: the same array in both).
TENSORS: dict[str, tuple[tuple[str, ...], int]] = {
    "embed_tokens.weight": (("embed",), 0),
    "layers.{}.input_layernorm.weight": (("layers", "attention_norm", "weight"), 0),
    "layers.{}.self_attn.q_proj.weight": (("layers", "q"), 1),
    "layers.{}.self_attn.k_proj.weight": (("layers", "k"), 1),
    "layers.{}.self_attn.v_proj.weight": (("layers", "v"), 1),
    "layers.{}.self_attn.q_norm.weight": (("layers", "q_norm", "weight"), 0),
    "layers.{}.self_attn.k_norm.weight": (("layers", "k_norm", "weight"), 0),
    "layers.{}.self_attn.o_proj.weight": (("layers", "o"), 2),
    # Qwen3 has no norm after attention: this one stands before the mlp
    "layers.{}.post_attention_layernorm.weight": (("layers", "mlp_norm", "weight"), 0),
    "layers.{}.mlp.gate_proj.weight": (("layers", "gate"), 1),
    "layers.{}.mlp.up_proj.weight": (("layers", "up"), 1),
    "layers.{}.mlp.down_proj.weight": (("layers", "down"), 1),
    "norm.weight": (("final_norm", "weight"), 0),
}

# Where a file leaves a key out: the defaults of transformers' Qwen3Config.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}


def from_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The decoder that a config.json describes; keys of transformers 4 and 5.

    Raises `UserError`: one line that names the field, for what is wrong or not
    supported (windows, biases, RoPE scaling other than linear).
    """
    config = {**DEFAULTS, **config}
    only(config, hidden_act="silu", attention_bias=False, use_sliding_window=False)
    theta, factor = rope(
        config.get("rope_parameters"),
        config.get("rope_scaling"),
        theta=config.get("rope_theta", 1e4),
    )
    return DecoderConfig(
        **sizes(config),
        rope_theta=theta,
        rope_factor=factor,
        tied=bool(config["tie_word_embeddings"]),
    )


def to_config(cfg: DecoderConfig) -> dict[str, Any]:
    """The config.json of a text model, with the keys that every reader knows."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "intermediate_size": cfg.mlp_width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": linear_scaling(cfg.rope_factor),
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "tie_word_embeddings": cfg.tied,
    }
