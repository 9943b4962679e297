"""The compiled program of rewards and advantages."""

from jax.sharding import Mesh
from jaxtyping import Array

from blue.rewards import advantages
from blue.rewards.functions import RewardInputs, combine
from blue.runtime.programs import Program, compile_program
from blue.runtime.sharding import by_batch


def make_rewards(
    mesh: Mesh,
    inputs: RewardInputs,
    *,
    weights: dict[str, float],
    options: dict[str, dict],
) -> Program:
    """(RewardInputs) -> (advantages [B G], which of them teach [B G], total [B G],
    {reward: [B G]})."""

    def run(x: RewardInputs) -> tuple[Array, Array, Array, dict[str, Array]]:
        total, parts = combine(x, weights, options)
        teaching = advantages.teaching(total)
        return advantages.group_advantages(total), teaching, total, parts

    return compile_program(run, (inputs,), out_shardings=by_batch(mesh))
