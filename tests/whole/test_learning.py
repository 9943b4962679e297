"""The loop learns: sampling, advantages and update raise a reward in a toy world."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from blue.inference import sampling, scoring
from blue.models import gemma3
from blue.models.params import abstract_params, make_init
from blue.rewards.advantages import group_advantages
from blue.runtime import sharding
from blue.runtime.shapes import Precision, Sampling, Shapes
from blue.training import optimizers
from blue.training.optimizers import make_optimizer, make_schedule
from blue.training.policy import Objective, UpdateBatch, make_update
from tests.helpers.updates import mesh_of

B, G, P, C, LIKED = 8, 8, 4, 6, 7


def test_reward_rises():
    """The reward is the share of token LIKED; it starts at chance, 1/16."""
    mesh = mesh_of((1, 1, 1))
    cfg = dataclasses.replace(
        gemma3.tiny_gemma3(), vocab_size=16, width=16, mlp_width=32, head_size=8,
        num_layers=1, pattern=("global",),
    )  # fmt: skip
    schedule = make_schedule(2e-2, kind="constant", warmup_steps=0, num_steps=40)
    optimizer = make_optimizer(schedule, b1=0.9, b2=0.95, eps=1e-8, grad_clip=1.0)
    base = make_init(cfg, mesh, "float32")(np.uint32(0))
    shapes = abstract_params(cfg, mesh, "float32")
    state = optimizers.make_init_state(shapes, optimizer, mesh)(base)
    sizes, precision = Shapes(B, P, G, C), Precision("float32", "float32")
    relayout = sampling.make_relayout(cfg, mesh, precision)
    draws = Sampling(1.0, top_k=0, top_p=1.0, end_ids=(1,), pad_id=0)
    sample = sampling.make_sample(cfg, mesh, sizes, draws, "float32")
    reference = scoring.make_completion_logprobs(
        cfg, mesh, sizes, precision, temperature=1.0
    )
    objective = Objective(temperature=1.0, clip_eps=0.2, kl_coef=0.01)
    update = make_update(cfg, mesh, optimizer, schedule, sizes, precision, objective)
    rows = sharding.by_batch(mesh)
    prompt = np.arange(B * P, dtype=np.int32).reshape(B, P) % 16
    prompt, mask, ids = sharding.put(
        (prompt, np.ones((B, P), bool), np.arange(B, dtype=np.int32)), rows
    )
    curve = []
    for step in range(30):
        seeds = np.array([0, 1, step], np.uint32)
        rollout = sample(relayout(state.params), prompt, mask, ids, seeds)
        tokens, kept = sharding.to_host((rollout.tokens, rollout.mask))
        reward = ((tokens == LIKED) & kept).sum(-1) / C
        curve.append(reward.mean())
        advantages = np.asarray(group_advantages(jnp.asarray(reward, jnp.float32)))
        ref = reference(base, prompt, mask, rollout.tokens)
        state, info = update(
            state,
            {},
            UpdateBatch(
                prompt, mask, rollout.tokens, rollout.mask, rollout.logprobs, ref,
                sharding.put(advantages, rows),
                sharding.put(np.ones((B, G), bool), rows),
            ),
        )  # fmt: skip
        assert float(info["policy/sampler_gap_max"]) < 1e-4
    assert curve[0] < 0.15 and np.mean(curve[-3:]) > 0.7, curve
    assert float(info["policy/kl"]) > 0.1
