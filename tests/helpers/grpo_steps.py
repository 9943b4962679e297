"""GRPO steps of a tiny profiler, in one process or as one of several.

    python -m tests.grpo_steps OUT.npz [HOST:PORT NUM_PROCESSES PROCESS_ID]

A step is whole: rollout, reference, embedding, rewards, update. In the first the tokens
are sampled, in the others they are given, so that no rounding can change them. OUT.npz,
of process 0, has the parameters, tokens and metrics after each.
"""

import dataclasses
import sys

import jax
import numpy as np

from blue.inference import sampling, scoring
from blue.inference.packing import RowShapes
from blue.inference.pad import pad_left, pad_right
from blue.models import gemma3, qwen3
from blue.models.params import abstract_params, make_init
from blue.runtime import distributed
from blue.runtime.shapes import Precision, Sampling, Shapes
from blue.runtime.sharding import by_batch, make_mesh, put, replicated, to_host
from blue.stages import step_programs
from blue.training import optimizers
from blue.training.optimizers import make_optimizer, make_schedule
from blue.training.policy import Objective, UpdateBatch, make_update
from configs import base
from tests.helpers.small_model import one_a_row

STEPS, P = 3, 12
# Adam divides each gradient by its size: one that is all rounding moves its parameter
# by up to LR, so that LR bounds by how much the parameters of two equal runs differ.
LR = 1e-4


def run():
    """{name: array} of all steps, the same on every host."""
    c = base.get_config("tiny")
    c.prompt_buckets, c.max_prompt_tokens, c.max_completion_tokens = (P,), P, 6
    B, G, C = c.batch_size, c.group_size, c.max_completion_tokens
    mesh = make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tensor)
    cfg, encoder_cfg = one_layer(gemma3.tiny_gemma3()), one_layer(qwen3.tiny_qwen3())
    seed = put(np.uint32(3), replicated(mesh))
    params = make_init(cfg, mesh, "float32")(seed)
    encoder = make_init(encoder_cfg, mesh, "float32")(seed)
    schedule = make_schedule(LR, kind="constant", warmup_steps=0, num_steps=STEPS)
    optimizer = make_optimizer(schedule, b1=0.9, b2=0.95, eps=1e-8, grad_clip=1.0)
    shapes, precision = Shapes(B, P, G, C), Precision("float32", "float32")
    relayout = sampling.make_relayout(cfg, mesh, precision)
    draws = Sampling(1.0, top_k=0, top_p=1.0, end_ids=(1,), pad_id=0)
    sample = sampling.make_sample(cfg, mesh, shapes, draws, "float32")
    score = scoring.make_completion_logprobs(
        cfg, mesh, shapes, precision, temperature=1.0
    )
    embed = scoring.make_embed(encoder_cfg, mesh, RowShapes(B * G, C, 1), precision)
    rewards = step_programs.reward_program(c, mesh, encoder_cfg.width)
    objective = Objective(1.0, c.clip_eps, c.kl_coef)
    update = make_update(cfg, mesh, optimizer, schedule, shapes, precision, objective)
    init = optimizers.make_init_state(
        abstract_params(cfg, mesh, "float32"), optimizer, mesh
    )
    state = init(params)

    out = {}
    for step in range(STEPS):
        rng = np.random.default_rng(step)
        rows = [rng.integers(2, 64, rng.integers(3, P + 1)).tolist() for _ in range(B)]
        prompt, prompt_mask, ids = put(
            (*pad_left(rows, P, 0), np.arange(B, dtype=np.int32)),
            by_batch(mesh),
        )
        if step == 0:
            seeds = put(np.array([0, 0, step], np.uint32), replicated(mesh))
            rollout = sample(relayout(state.params), prompt, prompt_mask, ids, seeds)
            tokens, mask, logprobs = rollout
        else:
            given = [rng.integers(1, 64, rng.integers(1, C + 1)) for _ in range(B * G)]
            padded = pad_right([g.tolist() for g in given], C, 0)
            shaped = [x.reshape(B, G, C) for x in padded]
            tokens, mask = put(tuple(shaped), by_batch(mesh))
            logprobs = score(state.params, prompt, prompt_mask, tokens)
        reference = score(params, prompt, prompt_mask, tokens)
        words, word_mask = (x.reshape(B * G, C) for x in to_host((tokens, mask)))
        left = pad_left(
            [w[m].tolist() for w, m in zip(words, word_mask, strict=True)], C, 0
        )
        vectors = to_host(embed(encoder, *put(one_a_row(*left), by_batch(mesh))))
        inputs = reward_inputs(c, rng, vectors.reshape(B, G, -1))
        advantages, teaching, total, _ = rewards.program(put(inputs, by_batch(mesh)))
        batch = UpdateBatch(
            prompt, prompt_mask, tokens, mask, logprobs, reference, advantages, teaching
        )
        state, info = update(state, {}, batch)
        seen = {"params": state.params, "metrics": info, "tokens": tokens}
        seen["moments"] = state.opt_state  # the gradients
        seen |= {"reward": total, "vectors": vectors}
        for path, leaf in jax.tree_util.tree_leaves_with_path(to_host(seen)):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            out[f"{step}/{name}"] = leaf
    return out


def one_layer(cfg):
    return dataclasses.replace(
        cfg, vocab_size=64, width=32, mlp_width=48, head_size=8, window=5,
        num_layers=1, pattern=cfg.pattern[-1:],
    )  # fmt: skip


def reward_inputs(c, rng, vectors):
    """Profiles as they were embedded, and items from nowhere."""
    B, G, E = vectors.shape
    M, O, K = c.num_negatives, c.rewards.choice.num_options, 1  # noqa: E741
    unit = lambda x: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
    other = lambda *shape: unit(rng.normal(size=shape))
    answer = np.zeros((B, O), np.float32)
    answer[:, 0] = 1
    return dict(
        history_profile_emb=vectors,
        profile_emb=vectors,
        next_item_emb=other(B, K, E),
        next_item_mask=np.ones((B, K), bool),
        negative_emb=other(B, M, E),
        negative_mask=np.ones((B, M), bool),
        in_batch_mask=np.repeat(~np.eye(B, dtype=bool)[:, None], K, axis=1),
        choice_scores=rng.normal(size=(B, G, O)).astype(np.float32),
        choice_answer=answer,
        finished=rng.random((B, G)) < 0.5,
        repeated_words=np.zeros((B, G), np.float32),
    )


def main(out, address="", num_processes="0", process_id="-1"):
    distributed.join(
        coordinator=address,
        num_processes=int(num_processes),
        process_id=int(process_id),
        auto=False,
        heartbeat_s=20.0,
        start_timeout_s=60.0,
    )
    arrays = run()
    if jax.process_index() == 0:
        np.savez(out, **arrays)
    return distributed.end_process(0, "")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
