"""Fields of a checkpoint's config.json that families share, read and written.

What the decoder does not support is refused.
"""

from collections.abc import Mapping
from typing import Any

from blue.errors import UserError
from blue.models.decoder import DecoderConfig

SIZES = {  # our name -> the key
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
}


def positive_int(config: Mapping[str, Any], key: str) -> int:
    """The field `key`, a whole number of at least 1. Raises `UserError`."""
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise UserError(f"{key} is {value!r}; it must be a whole number of at least 1")
    return value


def positive_number(config: Mapping[str, Any], key: str) -> float:
    """The field `key`, a number above 0. Raises `UserError`."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise UserError(f"{key} is {value!r}; it must be a number above 0")
    return float(value)


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `DecoderConfig` whose keys all families share, by our names.

    config: content of config.json over the family's defaults. Keys of transformers 4
    (rope_theta, rope_scaling) and 5 (rope_parameters).

    Raises `UserError`: one line that names the field, for what is wrong or not
    supported (biases, RoPE scaling other than linear).
    """
    require_supported(config, attention_bias=False)
    theta, factor = rope(
        config.get("rope_parameters"),
        config.get("rope_scaling"),
        theta=config.get("rope_theta"),
    )
    return {
        **{ours: positive_int(config, key) for ours, key in SIZES.items()},
        "norm_eps": positive_number(config, "rms_norm_eps"),
        "rope_theta": theta,
        "rope_factor": factor,
        "tied": bool(config["tie_word_embeddings"]),
    }


def write(cfg: DecoderConfig) -> dict[str, Any]:
    """The keys that `read` reads, in the form of transformers 4, which 5 also reads."""
    return {
        **{key: getattr(cfg, ours) for ours, key in SIZES.items()},
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": linear_scaling(cfg.rope_factor),
        "attention_bias": False,
        "tie_word_embeddings": cfg.tied,
    }


def require_supported(config: Mapping[str, Any], **supported: Any) -> None:
    """Raises `UserError` for a field with an unsupported value; it may be absent."""
    for key, value in supported.items():
        found = config.get(key, value)
        if found != value and (found or value):  # null, false and 0 are all "off"
            raise UserError(f"{key} is {found!r}; only {value!r} is supported")


def rope(*parts: Mapping[str, Any] | None, theta: Any) -> tuple[float, float]:
    """Base and linear factor of a rotary embedding; later parts win, None is empty.

    theta: the base where no part has one, as in the file.

    Raises `UserError` for any scaling but the linear one (positions / factor).
    """
    fields: dict[str, Any] = {"rope_theta": theta}
    for part in parts:
        fields |= part or {}
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind not in ("default", "linear"):
        raise UserError(f"rope_type is {kind!r}; supported are 'default' and 'linear'")
    factor = positive_number(fields, "factor") if kind == "linear" else 1.0
    return positive_number(fields, "rope_theta"), factor


def linear_scaling(factor: float) -> dict[str, Any] | None:
    """The field `rope_scaling` of a linear factor."""
    return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}
