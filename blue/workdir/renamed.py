"""Fields of the config that were renamed: an old name ends with one line.

A recorded config with an old name is read with the new one.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from blue.errors import UserError

NEW_NAMES = {
    "rewards.choice.reader": "judge.model",
    "rewards.choice.scoring": "judge.scoring",
    "rewards.choice.max_prompt_tokens": "judge.max_prompt_tokens",
    "rewards.choice.max_option_tokens": "judge.max_option_tokens",
}


def refuse(names: Iterable[str], where: str) -> None:
    """Raises `UserError` at the first old name. where: its source, for the message."""
    for name in names:
        if name in NEW_NAMES:
            raise UserError(f"{where}: {name} is now {NEW_NAMES[name]}")


def with_new_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded, nested config with present field names."""
    return _nested({NEW_NAMES.get(k, k): v for k, v in _leaves(config, "")})


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in leaves.items():
        *sections, last = name.split(".")
        at = tree
        for section in sections:
            at = at.setdefault(section, {})
        at[last] = value
    return tree
