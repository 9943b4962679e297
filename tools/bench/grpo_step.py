"""Steps of BLUE's GRPO: sampling, reference pass, update; prints one JSON line.

    python tools/bench/grpo_step.py [--prompt=1024] [--users=4 --g=8 --new=64 ...]

A random Gemma 3 takes steps in float32 on one core, nothing recomputed. A step writes
`--g` completions of `--new` tokens for each of `--users` new prompts. The host rewards
them with the sum of the ids, modulo 97. Then come log-probabilities of the starting
model and an update with the KL to it. The programs are the stage's own, a user at a
time where gradients add up, as `microbatch_size=1` has it. Generation includes the copy
to the decode layout.
Peers at the same work: tools/bench/peers/tunix_grpo_step.py and trl_grpo_step.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tools.bench import measure

if __name__ == "__main__":
    args = measure.parse(
        __doc__,
        [*measure.SIZES],
        **measure.GRPO_STEP,
        micro=(1, "users a forward pass of the update and the reference; 0: all"),
    )

    import jax
    import numpy as np

    from blue.inference import sampling, scoring
    from blue.rewards import advantages
    from blue.runtime import programs
    from blue.runtime.shapes import Sampling, Shapes
    from blue.runtime.sharding import by_batch, put, replicated
    from blue.training.policy import Objective, UpdateBatch, make_update
    from tools.bench import ours

    cfg, mesh = ours.profiler(args.size), ours.one_device()
    B, G, P, C = args.users, args.g, args.prompt, args.new
    shapes = Shapes(B, P, G, C)
    draws = Sampling(1.0, top_k=0, top_p=1.0, end_ids=(-1,), pad_id=measure.PAD)
    objective = Objective(temperature=1.0, clip_eps=0.2, kl_coef=0.01)
    schedule, optimizer = ours.adam(1e-6)
    with measure.Clock() as compiling:
        relayout = sampling.make_relayout(cfg, mesh, ours.FLOAT32)
        sample = sampling.make_sample(cfg, mesh, shapes, draws, "float32")
        reference = scoring.make_completion_logprobs(
            cfg, mesh, shapes, ours.FLOAT32, temperature=1.0, microbatch=args.micro
        )
        update = make_update(
            cfg, mesh, optimizer, schedule, shapes, ours.FLOAT32, objective, args.micro
        )
        rewards = programs.rows(mesh, (B, G), np.float32)
        judge = programs.compile_program(
            lambda r: (advantages.group_advantages(r), advantages.teaching(r)),
            (rewards,),
            out_shardings=by_batch(mesh),
        )
        base, state = ours.start(cfg, mesh, optimizer)
        programs.wait()
    names = ("step", "generation", "ref_logprob", "update")
    clocks: dict[str, list[measure.Clock]] = {name: [] for name in names}
    rng = np.random.default_rng(1)
    first = compiling.wall
    for number in range(args.steps + 1):
        tokens = rng.integers(4, cfg.vocab_size, (B, P), np.int32)
        seeds = put(np.array([0, 0, number], np.uint32), replicated(mesh))
        with measure.Clock() as step:
            batch = (tokens, np.ones_like(tokens, bool), np.arange(B, dtype=np.int32))
            prompt, mask, ids = put(batch, by_batch(mesh))
            with measure.Clock() as generation:
                out = sample(relayout(state.params), prompt, mask, ids, seeds)
                written = np.asarray(jax.block_until_ready(out).tokens)
            with measure.Clock() as ref_logprob:
                ref = reference(base, prompt, mask, out.tokens)
                jax.block_until_ready(ref)
            scores = [[measure.reward(r.tolist()) for r in rows] for rows in written]
            scores = put(np.array(scores, np.float32), by_batch(mesh))
            with measure.Clock() as learning:
                batch = UpdateBatch(
                    prompt, mask, out.tokens, out.mask, out.logprobs, ref,
                    *judge(scores),
                )  # fmt: skip
                state, told = update(state, {}, batch)
                jax.block_until_ready((state, told))
        assert np.isfinite(float(told["policy/loss"])), told
        if number == 0:
            first += step.wall
            continue
        for name, clock in zip(
            names, (step, generation, ref_logprob, learning), strict=True
        ):
            clocks[name].append(clock)
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(base), jax.tree.leaves(state.params), strict=True
        )
    ]
    measure.emit(
        "blue", "grpo_step", args, params_m=ours.num_params(base),
        actor_moved=any(moved), rollout_prompts=B, rollout_distinct_prompts=B,
        first_step_wall_s=round(first, 2),
        **{k: v for n in names for k, v in measure.seconds(n, clocks[n]).items()},
    )  # fmt: skip
