"""The families of decoders: one table from `DecoderConfig.family` to its module.

How to add a family: blue/models/README.md.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from blue.errors import UserError
from blue.models import gemma3, qwen3
from blue.models.decoder import DecoderConfig
from blue.models.tensor_names import TensorNames


@runtime_checkable
class Family(Protocol):
    """The attributes of a family's module."""

    @property
    def PRESETS(self) -> tuple[Callable[[], DecoderConfig], ...]:
        """Functions; the name of the function is the name of the preset."""
        ...

    @property
    def MODEL_TYPES(self) -> Mapping[str, str]:
        """`model_type` of config.json -> the name of the decoder inside that model in
        transformers: "language_model" in a multimodal one, "" in a text model."""
        ...

    @property
    def TENSORS(self) -> TensorNames:
        """The names of the tensors, except the head's."""
        ...

    @property
    def LICENCE(self) -> Mapping[str, str]:
        """Licence fields of the card of a model whose source states none; {}: unknown.

        Only for a family whose terms bind everything that is made from it.
        """
        ...

    @property
    def NOTICE(self) -> str:
        """The notice that the licence requires beside the weights; "": none."""
        ...

    @property
    def from_config(self) -> Callable[[Mapping[str, Any]], DecoderConfig]:
        """Content of config.json -> the decoder. Raises `UserError`: one line that
        names the field, for what is wrong or not supported."""
        ...

    @property
    def to_config(self) -> Callable[[DecoderConfig], dict[str, Any]]:
        """The decoder -> config.json of a text model, `from_config`'s inverse."""
        ...


FAMILIES: dict[str, Family] = {
    "gemma3": gemma3,
    "qwen3": qwen3,
}


def of(cfg: DecoderConfig) -> Family:
    """The family of a decoder."""
    return FAMILIES[cfg.family]


def of_model_type(model_type: Any) -> Family:
    """The family that reads config.json with this `model_type`.

    Raises `UserError` where there is none.
    """
    known = {kind: f for f in FAMILIES.values() for kind in f.MODEL_TYPES}
    if not isinstance(model_type, str) or model_type not in known:
        raise UserError(
            f"model_type is {model_type!r}; supported are {', '.join(known)}"
        )
    return known[model_type]


def presets() -> dict[str, Callable[[], DecoderConfig]]:
    """All presets by name."""
    return {make.__name__: make for f in FAMILIES.values() for make in f.PRESETS}


def preset(name: str) -> DecoderConfig:
    """The decoder of a preset. Raises `UserError` for an unknown name."""
    known = presets()
    if name not in known:
        raise UserError(f"preset {name!r} is not known; known are {', '.join(known)}")
    return known[name]()


def later_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Values of fields of `DecoderConfig` that are missing in `fields`, of an older
    version. They are the defaults; the family follows from other fields."""
    later = {
        field.name: field.default
        for field in dataclasses.fields(DecoderConfig)
        if field.default is not dataclasses.MISSING
    }
    later["family"] = "gemma3" if fields.get("norm_plus_one") else "qwen3"
    return {name: value for name, value in later.items() if name not in fields}
