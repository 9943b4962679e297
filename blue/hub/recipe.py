"""How a model should be used: wording, lengths, temperature.

For an export they come from training_config.json, which has the config of its run. For
other Hugging Face directories the defaults here are used. A caller's values override
both.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from etils import epath

from blue.errors import UserError
from blue.hub.card import FACTS
from blue.text.templates import TEMPLATES
from blue.workdir.allowed import DTYPES

LARGEST = 2**20  # of tokens, items, rows: the file is untrusted
ONE_OF = {
    "prompt_style": tuple(TEMPLATES),
    "params_dtype": DTYPES,
    "compute_dtype": DTYPES,
}


class ProfilerRecipe(NamedTuple):
    """How a profiler is used; the defaults are for a directory without a recipe.

    They come from configs/base.py, except two that suit a single call: shorter profiles
    and smaller batches.
    """

    prompt_style: str = "full"  # wording of the prompt: full | short
    history_items: int = 1000  # newest titles that are shown
    max_prompt_tokens: int = 2048  # oldest titles are dropped first
    prompt_buckets: tuple[int, ...] = (512, 1024, 2048)  # padded prompt lengths
    max_completion_tokens: int = 512
    sampling_temperature: float = 0.7  # 0: always the likeliest token
    params_dtype: str = "float32"
    compute_dtype: str = "float32"
    batch_size: int = 8  # profiles written at a time


class EncoderRecipe(NamedTuple):
    """How an encoder is used; values as in `ProfilerRecipe`."""

    prompt_style: str = "full"  # wording of the views of a user: full | short
    recent_items: int = 10  # titles in the view of recent history and profile
    max_tokens: int = 512  # longer texts are cut at their end
    row_lengths: tuple[int, ...] = (32, 128, 512)  # tokens of a row of packed texts
    params_dtype: str = "float32"
    compute_dtype: str = "float32"
    batch_size: int = 8  # rows a call


# Names of the values in a run's config; others come only from the caller.
_OF_PROFILER = {
    "prompt_style": "prompts.style",
    "history_items": "prompts.history_items",
    "max_prompt_tokens": "max_prompt_tokens",
    "prompt_buckets": "prompt_buckets",
    "max_completion_tokens": "max_completion_tokens",
    "sampling_temperature": "evaluate.sampling_temperature",
    "params_dtype": "dtype.params",
    "compute_dtype": "dtype.compute",
}
_OF_ENCODER = {
    "prompt_style": "prompts.style",
    "recent_items": "prompts.recent_items",
    "max_tokens": "encoder.max_tokens",
    "row_lengths": "encoder.buckets",
    "params_dtype": "dtype.params",
    "compute_dtype": "dtype.compute",
}
Recipe = TypeVar("Recipe", ProfilerRecipe, EncoderRecipe)


def of_profiler(
    directory: epath.PathLike, given: Mapping[str, Any], default: ProfilerRecipe
) -> ProfilerRecipe:
    """The recipe of the profiler in `directory`, its longest bucket that of a prompt.

    Args:
        given: the caller's values, which override the export's.
        default: for all other fields.

    Raises:
        UserError: a field that does not exist or has an impossible value; an export
            of the other role.
    """
    recipe = _fill(default, _OF_PROFILER, directory, given, "profiler")
    longest = recipe.max_prompt_tokens
    buckets = [length for length in recipe.prompt_buckets if length < longest]
    return recipe._replace(prompt_buckets=(*buckets, longest))


def of_encoder(
    directory: epath.PathLike, given: Mapping[str, Any], default: EncoderRecipe
) -> EncoderRecipe:
    """The recipe of the encoder in `directory`; a text of `max_tokens` fits its rows.

    Arguments and errors are those of `of_profiler`.
    """
    recipe = _fill(default, _OF_ENCODER, directory, given, "encoder")
    lengths = sorted({*recipe.row_lengths, recipe.max_tokens})
    return recipe._replace(row_lengths=tuple(lengths))


def _fill(
    default: Recipe,
    places: Mapping[str, str],
    directory: epath.PathLike,
    given: Mapping[str, Any],
    role: str,
) -> Recipe:
    for name in given:
        if name not in default._fields:
            known = ", ".join(default._fields)
            raise UserError(f"{name} is no setting of a {role}; known are {known}")
    path = epath.Path(directory) / FACTS
    config = _read_config(path, role)
    values = {}
    for name, usual in default._asdict().items():
        if name in given:
            values[name] = _check(name, given[name], usual, name)
        elif config is not None and name in places:
            place = places[name]
            found = _look_up(config, place)
            if found is None:
                raise UserError(f"{path}: config.{place} is missing; give {name}=...")
            values[name] = _check(f"{path}: config.{place}", found, usual, name)
    return default._replace(**values)


def _read_config(path: epath.Path, role: str) -> Mapping[str, Any] | None:
    """The config of the run that made an export; None for any other directory."""
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(facts, dict) or not isinstance(facts.get("config"), dict):
        raise UserError(f"{path}: must be a JSON object with the object config")
    if (found := facts.get("role")) != role:
        raise UserError(f"{path}: role is {found!r}; a {role} is asked for")
    return facts["config"]


def _look_up(config: Any, place: str) -> Any:
    for key in place.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _check(argument: str, value: Any, usual: Any, name: str) -> Any:
    """`value` as the type of `usual`. Raises `UserError`."""
    whole = f"1 to {LARGEST}"
    if name in ONE_OF:
        right, must = value in ONE_OF[name], f"one of {', '.join(ONE_OF[name])}"
    elif isinstance(usual, tuple):
        listed = isinstance(value, list | tuple) and all(map(_whole, value))
        right, must = listed and value, f"whole numbers of {whole}"
    elif isinstance(usual, int):
        right, must = _whole(value), f"a whole number of {whole}"
    else:
        right = type(value) in (int, float) and math.isfinite(value) and value >= 0
        value, must = float(value) if right else value, "a number of 0 or more"
    if not right:
        raise UserError(f"{argument} is {value!r}, must be {must}")
    return tuple(sorted(set(value))) if isinstance(usual, tuple) else value


def _whole(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST
