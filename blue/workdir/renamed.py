"""Fields of the config that were renamed: an old name ends with one line.

A recorded config with an old name is read with the new one.
"""

import copy
import functools
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
    tree = copy.deepcopy(dict(config))
    for old, new in NEW_NAMES.items():
        *sections, name = old.split(".")
        source = functools.reduce(lambda t, section: t.get(section, {}), sections, tree)
        if name in source:
            *sections, new_name = new.split(".")
            target = tree
            for section in sections:
                target = target.setdefault(section, {})
            target[new_name] = source.pop(name)
    return tree
