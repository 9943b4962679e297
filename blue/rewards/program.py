"""config.rewards -> the compiled program of rewards and advantages."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh
from jaxtyping import Array

from blue.errors import UserError
from blue.rewards import advantages, functions, inputs
from blue.runtime.programs import Program, compile_program, rows
from blue.runtime.sharding import by_batch


class Reward(NamedTuple):
    """A reward with the arguments of its section of the config."""

    function: Callable[..., Array]
    weight: float
    arguments: dict[str, Any]  # the fields of the section that its signature names
    inputs: tuple[str, ...]  # its positional parameters
    unused: frozenset[str]  # views whose weight among its arguments is 0


class Rewards(NamedTuple):
    """The rewards of a run, compiled."""

    by_name: dict[str, Reward]
    used: frozenset[str]  # inputs that some reward needs
    program: Program  # ({input: array}) -> as `make_rewards` says

    def need_judge(self) -> bool:
        """Whether the sum of the rewards depends on the judge."""
        return any(r.weight and asks_judge(r) for r in self.by_name.values())


def used_inputs(rewards: Mapping[str, Reward]) -> frozenset[str]:
    """Names of the inputs that some reward needs; the others are not computed."""
    return frozenset[str]().union(*(set(r.inputs) - r.unused for r in rewards.values()))


def asks_judge(reward: Reward) -> bool:
    """Whether an input of the reward comes from the judge."""
    return not set(reward.inputs).isdisjoint(inputs.JUDGED)


def rewards_of(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Reward]:
    """{name: reward} of config.rewards, checked. Raises `UserError` in one line."""
    return {name: _reward(name, fields) for name, fields in sections.items()}


def _reward(name: str, fields: Mapping[str, Any]) -> Reward:
    function = getattr(functions, name, None)
    if not inspect.isfunction(function):
        raise UserError(f"rewards.{name}: no such reward; known are {_known()}")
    looks_at, takes = _parameters(function)
    for parameter in looks_at:
        if not inputs.find(parameter):
            raise UserError(
                f"rewards.{name}: {name}() looks at {parameter}, which is none of the "
                f"inputs {', '.join(inputs.names())}"
            )
    fitting = f"{name}() takes {', '.join(('weight', *takes))}"
    for field in fields:
        if field not in ("weight", *takes):
            raise UserError(f"rewards.{name}.{field}: no such field; {fitting}")
    for field in ("weight", *takes):
        if field not in fields:
            raise UserError(f"rewards.{name}.{field} is missing; {fitting}")
    arguments = {field: fields[field] for field in takes}
    views = [view for view in looks_at if view in inputs.VIEWS]
    unused = [v for v in views if arguments.get(v.removesuffix("_emb")) == 0]
    weight = fields["weight"]
    return Reward(function, weight, arguments, tuple(looks_at), frozenset(unused))


def _parameters(function: Callable) -> tuple[list[str], list[str]]:
    """Names of the positional and of the keyword-only parameters."""
    parameters = inspect.signature(function).parameters.values()
    only = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return [p.name for p in parameters if p.name not in only], only


def _known() -> str:
    """Names of all rewards: the functions whose positional parameters are inputs."""
    found = inspect.getmembers(functions, inspect.isfunction)
    is_reward = lambda f: all(map(inputs.find, _parameters(f)[0]))
    return ", ".join(name for name, function in found if is_reward(function))


def make_rewards(
    by_name: Mapping[str, Reward], sizes: Mapping[str, int], mesh: Mesh
) -> Rewards:
    """Compiles ({input: array}) -> (advantages [B G], which are in the loss [B G],
    total [B G], {reward: [B G]}). sizes: of the letters of `inputs.SIZES`."""

    def run(given: dict[str, Array]) -> tuple[Array, Array, Array, dict[str, Array]]:
        parts = {
            name: r.function(*(given[i] for i in r.inputs), **r.arguments)
            for name, r in by_name.items()
        }
        total = functions.combine(parts, {n: r.weight for n, r in by_name.items()})
        teaching = advantages.teaching(total)
        return advantages.group_advantages(total), teaching, total, parts

    names = {name for reward in by_name.values() for name in reward.inputs}
    given = {n: rows(mesh, *inputs.shape_and_dtype(n, sizes)) for n in sorted(names)}
    program = compile_program(run, (given,), out_shardings=by_batch(mesh))
    return Rewards(dict(by_name), used_inputs(by_name), program)
