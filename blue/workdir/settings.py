"""The config of a run: read from the command line, and checked.

`check` refuses impossible values before anything is loaded. Stages check what depends
on data, models or devices.
"""

import contextlib
import difflib
import importlib.util
import math
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from blue.errors import UserError
from blue.workdir import allowed, renamed
from blue.workdir.stages import STAGES
from blue.workdir.usage import CONFIGS

ROLES = ("profiler", "encoder")  # of models
BUCKETS = {  # padded lengths -> the longest text they have to hold
    "prompt_buckets": "max_prompt_tokens",
    "encoder.buckets": "encoder.max_tokens",
}


# --- from the command line


def load(argv: Sequence[str]) -> tuple[ConfigDict, str]:
    """The locked config with its overrides, and the workdir. Raises `UserError`."""
    first = flags.FlagValues()
    flags.DEFINE_string("config", "", "", flag_values=first)
    flags.DEFINE_string("workdir", "", "", flag_values=first)
    try:
        rest = first(list(argv), known_only=True)
    except flags.Error as error:
        raise UserError(str(error)) from error
    given = {name: str(first[name].value) for name in ("config", "workdir")}
    for name, example in (("config", "configs/quickstart.py"), ("workdir", "runs/a")):
        if not given[name]:
            raise UserError(
                f"--{name} is missing, as in --{name}={example}; see --help"
            )
    config = _load_file(given["config"])
    _override(config, rest)
    return config, given["workdir"]


def leaves(
    config: ConfigDict | Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """All fields as ("rewards.choice.weight", 1.0); those of a config sorted."""
    for key, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _load_file(argument: str) -> ConfigDict:
    path, colon, choice = argument.partition(":")
    if not Path(path).is_file():
        raise UserError(f"--config={argument}: there is no file {path}")
    spec = importlib.util.spec_from_file_location("config", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config={argument}: {path} is no .py file")
    module = importlib.util.module_from_spec(spec)
    try:
        with _configs_importable(path):
            spec.loader.exec_module(module)
            config = module.get_config(*[choice] if colon else [])
    except Exception as error:  # a config is a program and may raise anything
        message = f"--config={argument}: {_where(error, path)}"
        name = error.name if isinstance(error, ImportError) else None
        if (name or "").partition(".")[0] == "configs" and not CONFIGS.is_dir():
            message += (
                "; pip installs blue without its configs: put "
                f"{Path(path).name} into the folder configs/ of a clone"
            )
        raise UserError(message) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={argument}: get_config() gave no ConfigDict")
    renamed.refuse((name for name, _ in leaves(config)), f"--config={argument}")
    return config.lock()


@contextlib.contextmanager
def _configs_importable(path: str) -> Iterator[None]:
    """Makes `from configs import base` work in a config, wherever the command runs.

    `configs` is the config's own folder if it has that name, else the clone's.
    """
    before, folder = list(sys.path), Path(path).absolute().parent
    if folder.name == CONFIGS.name:
        sys.path.insert(0, str(folder.parent))
    else:
        sys.path.append(str(CONFIGS.parent))
    try:
        yield
    finally:
        sys.path[:] = before


def _where(error: Exception, path: str) -> str:
    """The error in the file at `path`, with its line."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename == str(Path(path).absolute())]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [0])[-1]
    at = f"line {line}: " if line else ""
    return f"{at}{type(error).__name__}: {error}"


def _override(config: ConfigDict, argv: list[str]) -> None:
    """Set the fields named by `argv[1:]`, of the types that the config gives them."""
    kept = argv[:1]
    known = dict(leaves(config))
    for argument in argv[1:]:
        flag, _, value = argument.partition("=")
        name = re.sub(r"^--?(no)?config\.", "", flag) if "config." in flag else ""
        added = re.fullmatch(r"evaluate\.profiles\.(\w+)", name)
        if added and value:  # the only dict that may grow: profiles of other methods
            with config.unlocked():
                config.update({"evaluate": {"profiles": {added[1]: value}}})
            continue
        renamed.refuse([name], argument)
        if name and name not in known:
            raise UserError(f"{argument}: no such field{_did_you_mean(name, known)}")
        if name and hasattr(ConfigDict, name.rpartition(".")[2]):
            _set_shadowed(config, name, argument, type(known[name]), value)
            continue
        plain = re.fullmatch(r"[\w+,-]+", value) and not re.fullmatch(r"[\d,-]+", value)
        if isinstance(known.get(name), tuple) and plain:
            argument = f"{flag}={tuple(value.split(','))}"  # a,b: words need no quotes
        kept.append(argument)
    flag_values = flags.FlagValues()
    config_flags.DEFINE_config_dict(
        "config", config, flag_values=flag_values, sys_argv=kept, lock_config=True
    )
    try:
        rest = flag_values(kept)
    except flags.Error as error:
        raise UserError(str(error)) from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]}: not understood; fields are --config.FIELD=VALUE")


def _set_shadowed(
    config: ConfigDict, name: str, argument: str, kind: type, value: str
) -> None:
    """Sets a field like data.items, which config_flags confuses with a dict's
    method."""
    try:
        tree: Any = kind(value)
    except ValueError as error:
        raise UserError(f"{argument}: must be {kind.__name__}") from error
    for key in reversed(name.split(".")):
        tree = {key: tree}
    config.update(tree)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    same_end = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]]
    inside = [k for k in known if k.startswith(f"{name}.")]
    close = inside or same_end or difflib.get_close_matches(name, [*known], n=1)
    return f'. Did you mean "{close[0]}"?' if close else "; see --help"


# --- checks


def check(config: ConfigDict) -> list[str]:
    """The stages to run, in order. Raises `UserError` at the first impossible value."""
    values = dict(leaves(config))
    _check_numbers(values)
    _check_words(values)
    _check_buckets(values)
    _check_profile_steps(values)
    _check_evaluation(values)
    _check_mesh(values)
    chosen = _check_stages(values)
    _check_encoders(values, chosen)
    return chosen


def _get(values: dict[str, Any], name: str) -> Any:
    if name not in values:
        raise UserError(
            f"the config has no field {name}; let it start from configs/base.py"
        )
    return values[name]


def _check_numbers(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, int | float) and name not in allowed.MAY_BE_MINUS_1:
            if not math.isfinite(value):
                raise UserError(f"{name} is {value}, must be finite")
            if value < 0:
                raise UserError(f"{name} is {value}, must be at least 0")
    for low, names in allowed.AT_LEAST.items():
        for name in names:
            if _get(values, name) < low:
                raise UserError(f"{name} is {values[name]}, must be at least {low}")
    for high, names in allowed.AT_MOST.items():
        for name in names:
            if _get(values, name) > high:
                raise UserError(f"{name} is {values[name]}, must be at most {high}")
    for name in allowed.ABOVE_ZERO:
        if not _get(values, name) > 0:
            raise UserError(f"{name} is {values[name]}, must be above 0")
    for name in allowed.BELOW_ONE:
        if not 0 <= _get(values, name) < 1:
            raise UserError(f"{name} is {values[name]}, must be in [0, 1)")


def _check_words(values: dict[str, Any]) -> None:
    for name, known in allowed.ONE_OF.items():
        value = _get(values, name)
        for element in value if isinstance(value, tuple) else (value,):
            if element not in known:
                raise UserError(
                    f"{name} is {value!r}, must be one of {', '.join(known)}"
                )
    adapted = [role for role in ROLES if _get(values, f"{role}.lora.rank")]
    for name in (*allowed.NOT_EMPTY, *(f"{role}.lora.targets" for role in adapted)):
        if not _get(values, name):
            known = ", ".join(allowed.ONE_OF[name])
            raise UserError(f"{name} is empty, must name some of {known}")


def _check_buckets(values: dict[str, Any]) -> None:
    for name, longest in BUCKETS.items():
        buckets, tokens = _get(values, name), _get(values, longest)
        right = buckets and all(isinstance(b, int) and b > 0 for b in buckets)
        if not right or list(buckets) != sorted(set(buckets)):
            raise UserError(f"{name} is {buckets}, must be whole numbers, ascending")
        if buckets[-1] < tokens:
            raise UserError(
                f"{name} is {buckets}, must end with {longest} {tokens} or more"
            )


def _check_profile_steps(values: dict[str, Any]) -> None:
    steps = _get(values, "profile_steps")
    if steps and (
        len(steps) != 2
        or not all(isinstance(step, int) for step in steps)
        or not 0 <= steps[0] <= steps[1]
    ):
        raise UserError(
            f"profile_steps is {steps}, must be first and last step, as 10,12, or empty"
        )


def _check_evaluation(values: dict[str, Any]) -> None:
    lengths = _get(values, "evaluate.cold_start")
    if any(not isinstance(n, int) or n < 0 for n in lengths):
        raise UserError(
            f"evaluate.cold_start is {lengths}, must be history lengths of 0 or more"
        )


def _check_mesh(values: dict[str, Any]) -> None:
    names = [name for name in allowed.MAY_BE_MINUS_1 if name.startswith("mesh.")]
    sizes = {name: _get(values, name) for name in names}
    for name, size in sizes.items():
        if size != -1 and size < 1:
            raise UserError(f"{name} is {size}, must be at least 1, or -1 for the rest")
    if list(sizes.values()).count(-1) > 1:
        raise UserError(f"{sizes}: at most one of them can be -1")


def _check_stages(values: dict[str, Any]) -> list[str]:
    alone = _get(values, "stage")
    chosen = [alone] if alone else list(_get(values, "stages"))
    known = ", ".join(STAGES)
    for name in chosen:
        if name not in STAGES:
            field = "stage" if alone else "stages"
            raise UserError(
                f"{field} has {name!r}, must be of {known}"
                + _did_you_mean(name, STAGES).replace("; see --help", "")
            )
        if STAGES[name].only_compiles and len(chosen) > 1:
            raise UserError(
                f"stages has {name!r} among others: it runs alone, stage={name}"
            )
    if not chosen:
        raise UserError(f"stages is empty, must name some of {known}")
    return chosen


def _check_encoders(values: dict[str, Any], chosen: list[str]) -> None:
    kind, transfer = values["encoder.kind"], values["evaluate.transfer.kind"]
    for section, needs in (
        ("encoder", kind != "own"),
        ("evaluate.transfer", transfer != ""),
    ):
        if needs and not _get(values, f"{section}.checkpoint"):
            raise UserError(
                f"{section}.kind is {values[f'{section}.kind']!r} and "
                f"{section}.checkpoint is empty: which one?"
            )
    if kind == "own":
        return
    training = [stage for stage in chosen if STAGES[stage].trains == "encoder"]
    if training:
        rest = ",".join(stage for stage in chosen if stage not in training)
        raise UserError(
            f"stage {training[0]} trains our own encoder and encoder.kind is {kind!r}: "
            f"leave it out with --config.stages={rest}"
        )
    if "warm_start" in chosen and _get(values, "warm_start.tie_to_encoder"):
        raise UserError(
            f"warm_start.tie_to_encoder takes the embeddings of our own encoder and "
            f"encoder.kind is {kind!r}: set warm_start.tie_to_encoder=False"
        )
