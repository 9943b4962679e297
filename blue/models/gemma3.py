"""Gemma 3 text models: presets, names of their tensors, config.json, licence.

https://arxiv.org/abs/2503.19786; dimensions from the released config.json files.
"""

from collections.abc import Mapping
from typing import Any

from blue.errors import UserError
from blue.models import config_json
from blue.models.decoder import GLOBAL, LOCAL, DecoderConfig
from blue.models.tensor_names import tensor_names

PATTERN = (LOCAL,) * 5 + (GLOBAL,)


def _gemma3(**fields: Any) -> DecoderConfig:
    return DecoderConfig(
        **{"pattern": PATTERN, **fields},
        family="gemma3",
        norm_plus_one=True,
        post_norms=True,
        activation="gelu",
        scale_embedding=True,
    )


# --- presets


def gemma3_270m() -> DecoderConfig:
    """Gemma 3 270M: 268,098,176 parameters, 170 M of them the embedding."""
    return _gemma3(
        vocab_size=262144, width=640, mlp_width=2048, num_layers=18, num_heads=4,
        num_kv_heads=1, head_size=256, window=512,
    )  # fmt: skip


def gemma3_1b() -> DecoderConfig:
    """Gemma 3 1B, the paper's profiler: 999,885,952 parameters."""
    return _gemma3(
        vocab_size=262144, width=1152, mlp_width=6912, num_layers=26, num_heads=4,
        num_kv_heads=1, head_size=256, window=512,
    )  # fmt: skip


def gemma3_4b() -> DecoderConfig:
    """The text tower of Gemma 3 4B: 3,880,263,168 parameters."""
    return _gemma3(
        vocab_size=262208, width=2560, mlp_width=10240, num_layers=34, num_heads=8,
        num_kv_heads=4, head_size=256, window=1024, rope_factor=8.0,
    )  # fmt: skip


def gemma3_12b() -> DecoderConfig:
    """The text tower of Gemma 3 12B: 11,766,034,176 parameters."""
    return _gemma3(
        vocab_size=262208, width=3840, mlp_width=15360, num_layers=48, num_heads=16,
        num_kv_heads=8, head_size=256, window=1024, rope_factor=8.0,
    )  # fmt: skip


def gemma3_27b() -> DecoderConfig:
    """The text tower of Gemma 3 27B: 27,009,346,304 parameters."""
    return _gemma3(
        vocab_size=262208, width=5376, mlp_width=21504, num_layers=62, num_heads=32,
        num_kv_heads=16, head_size=128, window=1024, rope_factor=8.0,
        query_scale=168**-0.5,
    )  # fmt: skip


def tiny_gemma3() -> DecoderConfig:
    """163 k parameters beside the embedding; the quickstart's profiler."""
    return _gemma3(
        vocab_size=1024, width=64, mlp_width=256, num_layers=3, num_heads=4,
        num_kv_heads=2, head_size=16, window=512,
    )  # fmt: skip


PRESETS = (gemma3_270m, gemma3_1b, gemma3_4b, gemma3_12b, gemma3_27b, tiny_gemma3)

# --- the checkpoint's side

MODEL_TYPES = {"gemma3_text": "", "gemma3": "language_model"}
TENSORS = tensor_names(
    {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "mlp_norm",
        "post_feedforward_layernorm": "post_mlp_norm",
    }
)
# Its terms also bind derived models, and require the notice.
LICENCE = {"license": "gemma", "license_link": "https://ai.google.dev/gemma/terms"}
NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms"
)

# Keys that released files omit: the defaults of transformers' Gemma3TextConfig.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "tie_word_embeddings": True,
}
KINDS = {"sliding_attention": LOCAL, "full_attention": GLOBAL}


def from_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The decoder that a config.json describes: of a text model, or the text tower.

    Knows the keys of transformers 4 and 5. Raises `UserError`: one line that names the
    field, for what is wrong or not supported.
    """
    text = {**DEFAULTS, **(config.get("text_config") or config)}
    config_json.require_supported(
        text,
        hidden_activation="gelu_pytorch_tanh",
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        use_bidirectional_attention=False,
    )
    parts = text.get("rope_parameters") or {}
    if not set(parts) <= set(KINDS):
        raise UserError(
            f"rope_parameters has keys {sorted(parts)}; needs {list(KINDS)}"
        )
    theta_local, factor_local = config_json.rope(
        parts.get("sliding_attention"), theta=text["rope_local_base_freq"]
    )
    if factor_local != 1:
        raise UserError("RoPE scaling of sliding_attention layers is not supported")
    text["rope_parameters"] = parts.get("full_attention")
    # the outer value counts where a multimodal config has both
    tied = config.get("tie_word_embeddings", text["tie_word_embeddings"])
    shared = config_json.read({**text, "tie_word_embeddings": tied})
    scalar = config_json.positive_number(text, "query_pre_attn_scalar")
    return _gemma3(
        **shared,
        pattern=_pattern(text),
        window=config_json.positive_int(text, "sliding_window"),
        rope_theta_local=theta_local,
        query_scale=0.0 if scalar == shared["head_size"] else scalar**-0.5,
    )


def _pattern(text: Mapping[str, Any]) -> tuple[str, ...]:
    """The shortest pattern of the layers; the family's own where it fits."""
    key = next((k for k in text if k.endswith("sliding_window_pattern")), None)
    every = config_json.positive_int(text, key) if key else len(PATTERN)
    usual = (LOCAL,) * (every - 1) + (GLOBAL,)
    if text.get("layer_types") is None:
        return usual
    kinds = tuple(KINDS.get(name, "") for name in text["layer_types"])
    if "" in kinds or len(kinds) != text["num_hidden_layers"]:
        raise UserError(
            f"layer_types must be {text['num_hidden_layers']} times one of "
            f"{list(KINDS)}, not {text['layer_types']}"
        )
    patterns = [usual] + [kinds[:n] for n in range(1, len(kinds) + 1)]
    fits = lambda p: all(kind == p[i % len(p)] for i, kind in enumerate(kinds))
    return next(p for p in patterns if fits(p))


def to_config(cfg: DecoderConfig) -> dict[str, Any]:
    """The config.json of a text model, for transformers 4 and 5."""
    names = {kind: name for name, kind in KINDS.items()}
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **config_json.write(cfg),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(cfg.scale() ** -2),
        "sliding_window": cfg.window,
        "sliding_window_pattern": len(cfg.pattern),
        "layer_types": [names[cfg.kind(n)] for n in range(cfg.num_layers)],
        "rope_local_base_freq": cfg.rope_theta_local,
    }
