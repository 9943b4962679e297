"""Reads fields of a checkpoint's config.json; what the decoder cannot do is refused."""

from collections.abc import Mapping
from typing import Any

from blue.errors import UserError


def whole(config: Mapping[str, Any], key: str) -> int:
    """A field that counts something: a whole number of at least 1."""
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise UserError(f"{key} is {value!r}; it must be a whole number of at least 1")
    return value


def number(config: Mapping[str, Any], key: str) -> float:
    """A field that measures something: a number above 0."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise UserError(f"{key} is {value!r}; it must be a number above 0")
    return float(value)


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that both families have, by our names."""
    return {
        "vocab_size": whole(config, "vocab_size"),
        "width": whole(config, "hidden_size"),
        "mlp_width": whole(config, "intermediate_size"),
        "num_layers": whole(config, "num_hidden_layers"),
        "num_heads": whole(config, "num_attention_heads"),
        "num_kv_heads": whole(config, "num_key_value_heads"),
        "head_size": whole(config, "head_dim"),
        "norm_eps": number(config, "rms_norm_eps"),
    }


def only(config: Mapping[str, Any], **supported: Any) -> None:
    """Refuses fields with another value than the one supported; absent ones pass."""
    for key, value in supported.items():
        found = config.get(key, value)
        if found != value and (found or value):  # null, false and 0 are all "off"
            raise UserError(f"{key} is {found!r}; only {value!r} is supported")


def rope(*parts: Mapping[str, Any] | None, theta: Any) -> tuple[float, float]:
    """Base and linear factor of a rotary embedding; later parts win, None is empty.

    theta: the base where no part has one, as it stands in the file.

    Raises `UserError` for any scaling but the linear one (positions / factor).
    """
    fields: dict[str, Any] = {"rope_theta": theta}
    for part in parts:
        fields |= part or {}
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind not in ("default", "linear"):
        raise UserError(f"rope_type is {kind!r}; supported are 'default' and 'linear'")
    factor = number(fields, "factor") if kind == "linear" else 1.0
    return number(fields, "rope_theta"), factor


def linear_scaling(factor: float) -> dict[str, Any] | None:
    """The field `rope_scaling` of a linear factor."""
    return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}
