"""Qwen3 dense and Qwen3-Embedding: presets, tensors' names, config.json, licence.

https://arxiv.org/abs/2505.09388 and https://arxiv.org/abs/2506.05176; dimensions from
the released config.json files.
"""

from collections.abc import Mapping
from typing import Any

from blue.models import config_json
from blue.models.decoder import DecoderConfig
from blue.models.tensor_names import tensor_names


def _qwen3(**fields: Any) -> DecoderConfig:
    return DecoderConfig(family="qwen3", **fields)


# --- presets


def qwen3_0_6b() -> DecoderConfig:
    """Qwen3-0.6B: 596,049,920 parameters."""
    return _qwen3(
        vocab_size=151936, width=1024, mlp_width=3072, num_layers=28, num_heads=16,
        num_kv_heads=8, head_size=128,
    )  # fmt: skip


def qwen3_1_7b() -> DecoderConfig:
    """Qwen3-1.7B, the paper's second profiler: 1,720,574,976 parameters."""
    return _qwen3(
        vocab_size=151936, width=2048, mlp_width=6144, num_layers=28, num_heads=16,
        num_kv_heads=8, head_size=128,
    )  # fmt: skip


def qwen3_4b() -> DecoderConfig:
    """Qwen3-4B: 4,022,468,096 parameters."""
    return _qwen3(
        vocab_size=151936, width=2560, mlp_width=9728, num_layers=36, num_heads=32,
        num_kv_heads=8, head_size=128,
    )  # fmt: skip


def qwen3_8b() -> DecoderConfig:
    """Qwen3-8B: 8,190,735,360 parameters; untied head, as in all larger ones."""
    return _qwen3(
        vocab_size=151936, width=4096, mlp_width=12288, num_layers=36, num_heads=32,
        num_kv_heads=8, head_size=128, tied=False,
    )  # fmt: skip


def qwen3_14b() -> DecoderConfig:
    """Qwen3-14B: 14,768,307,200 parameters."""
    return _qwen3(
        vocab_size=151936, width=5120, mlp_width=17408, num_layers=40, num_heads=40,
        num_kv_heads=8, head_size=128, tied=False,
    )  # fmt: skip


def qwen3_32b() -> DecoderConfig:
    """Qwen3-32B: 32,762,123,264 parameters."""
    return _qwen3(
        vocab_size=151936, width=5120, mlp_width=25600, num_layers=64, num_heads=64,
        num_kv_heads=8, head_size=128, tied=False,
    )  # fmt: skip


def qwen3_embedding_0_6b() -> DecoderConfig:
    """Qwen3-Embedding-0.6B, the paper's encoder: 595,776,512 parameters.

    A decoder pooled at its last token.
    """
    return _qwen3(
        vocab_size=151669, width=1024, mlp_width=3072, num_layers=28, num_heads=16,
        num_kv_heads=8, head_size=128,
    )  # fmt: skip


def qwen3_embedding_4b() -> DecoderConfig:
    """Qwen3-Embedding-4B: vectors of 2560."""
    return _qwen3(
        vocab_size=151665, width=2560, mlp_width=9728, num_layers=36, num_heads=32,
        num_kv_heads=8, head_size=128,
    )  # fmt: skip


def qwen3_embedding_8b() -> DecoderConfig:
    """Qwen3-Embedding-8B: vectors of 4096. Encoders need no head: none here."""
    return _qwen3(
        vocab_size=151665, width=4096, mlp_width=12288, num_layers=36, num_heads=32,
        num_kv_heads=8, head_size=128,
    )  # fmt: skip


def tiny_qwen3() -> DecoderConfig:
    """The quickstart's encoder."""
    return _qwen3(
        vocab_size=1024, width=64, mlp_width=128, num_layers=2, num_heads=4,
        num_kv_heads=2, head_size=16, rope_theta=1e4,
    )  # fmt: skip


PRESETS = (
    qwen3_0_6b,
    qwen3_1_7b,
    qwen3_4b,
    qwen3_8b,
    qwen3_14b,
    qwen3_32b,
    qwen3_embedding_0_6b,
    qwen3_embedding_4b,
    qwen3_embedding_8b,
    tiny_qwen3,
)

# --- the checkpoint's side

MODEL_TYPES = {"qwen3": ""}
# Qwen3 has no norm after attention: this one is before the mlp.
TENSORS = tensor_names({"post_attention_layernorm": "mlp_norm"})
# The released models are under Apache 2.0, which does not bind derived models.
LICENCE: dict[str, str] = {}
NOTICE = ""

# Keys that a file omits: the defaults of transformers' Qwen3Config.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}


def from_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The decoder that a config.json describes.

    Raises `UserError`: one line that names the field, for what is wrong or not
    supported (windows, biases, RoPE scaling other than linear).
    """
    config = {**DEFAULTS, **config}
    config_json.require_supported(config, hidden_act="silu", use_sliding_window=False)
    return _qwen3(**config_json.read(config))


def to_config(cfg: DecoderConfig) -> dict[str, Any]:
    """The config.json of a text model, for transformers 4 and 5."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **config_json.write(cfg),
        "hidden_act": "silu",
        "use_sliding_window": False,
        "sliding_window": None,
    }
