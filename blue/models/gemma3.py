"""Gemma 3 text models: presets, config.json, and the names of their tensors.

https://arxiv.org/abs/2503.19786; dimensions from the released config.json files.
"""

from collections.abc import Mapping
from typing import Any

from blue.errors import UserError
from blue.models.config_json import linear_scaling, number, only, rope, sizes, whole
from blue.models.decoder import GLOBAL, LOCAL, DecoderConfig

PATTERN = (LOCAL,) * 5 + (GLOBAL,)


def _gemma3(**fields) -> DecoderConfig:
    return DecoderConfig(
        **{"pattern": PATTERN, **fields},
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
    "layers.{}.post_attention_layernorm.weight": (
        ("layers", "post_attention_norm", "weight"),
        0,
    ),
    "layers.{}.pre_feedforward_layernorm.weight": (("layers", "mlp_norm", "weight"), 0),
    "layers.{}.mlp.gate_proj.weight": (("layers", "gate"), 1),
    "layers.{}.mlp.up_proj.weight": (("layers", "up"), 1),
    "layers.{}.mlp.down_proj.weight": (("layers", "down"), 1),
    "layers.{}.post_feedforward_layernorm.weight": (
        ("layers", "post_mlp_norm", "weight"),
        0,
    ),
    "norm.weight": (("final_norm", "weight"), 0),
}

# What released files leave out: the defaults of transformers' Gemma3TextConfig.
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
    "tie_word_embeddings": True,
}
KINDS = {"sliding_attention": LOCAL, "full_attention": GLOBAL}


def from_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The decoder that a config.json describes: of a text model, or the text tower.

    Knows the keys of transformers 4 and 5. Raises `UserError`: one line that names the
    field, for what is wrong or not supported.
    """
    text = {**DEFAULTS, **(config.get("text_config") or config)}
    only(
        text,
        hidden_activation="gelu_pytorch_tanh",
        attention_bias=False,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        use_bidirectional_attention=False,
    )
    head_size = whole(text, "head_dim")
    scalar = number(text, "query_pre_attn_scalar")
    parts = text.get("rope_parameters") or {}
    if not set(parts) <= set(KINDS):
        raise UserError(
            f"rope_parameters has keys {sorted(parts)}; needs {list(KINDS)}"
        )
    theta, factor = rope(
        parts.get("full_attention"),
        text.get("rope_scaling"),
        theta=text.get("rope_theta", 1e6),
    )
    theta_local, factor_local = rope(
        parts.get("sliding_attention"), theta=text.get("rope_local_base_freq", 1e4)
    )
    if factor_local != 1:
        raise UserError("RoPE scaling of sliding_attention layers is not supported")
    return _gemma3(
        **sizes(text),
        pattern=_pattern(text),
        window=whole(text, "sliding_window"),
        rope_theta=theta,
        rope_theta_local=theta_local,
        rope_factor=factor,
        query_scale=0.0 if scalar == head_size else scalar**-0.5,
        # the outer value rules where a multimodal config has both
        tied=bool(config.get("tie_word_embeddings", text["tie_word_embeddings"])),
    )


def _pattern(text: Mapping[str, Any]) -> tuple[str, ...]:
    """The shortest pattern of the layers; the family's own where it fits."""
    key = next((k for k in text if k.endswith("sliding_window_pattern")), None)
    every = whole(text, key) if key else len(PATTERN)
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
    """The config.json of a text model, with the keys that every reader knows."""
    names = {kind: name for name, kind in KINDS.items()}
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "intermediate_size": cfg.mlp_width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_size,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": cfg.norm_eps,
        "query_pre_attn_scalar": round(cfg.scale() ** -2),
        "sliding_window": cfg.window,
        "sliding_window_pattern": len(cfg.pattern),
        "layer_types": [names[cfg.kind(n)] for n in range(cfg.num_layers)],
        "rope_theta": cfg.rope_theta,
        "rope_local_base_freq": cfg.rope_theta_local,
        "rope_scaling": linear_scaling(cfg.rope_factor),
        "attention_bias": False,
        "tie_word_embeddings": cfg.tied,
    }
