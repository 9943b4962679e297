"""Steps of Tunix's GRPO learner on one CPU device; prints one JSON line.

Its own sampler, a random Gemma 3 in float32, no layer recomputed. Beside
tools/bench/grpo_step.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
from tools.bench import measure

if __name__ == "__main__":
    args = measure.parse(__doc__, [*measure.SIZES], **measure.GRPO_STEP)

    import jax
    import numpy as np
    import optax
    from flax import nnx
    from tunix.rl import rl_cluster
    from tunix.rl.grpo import grpo_learner
    from tunix.rl.rollout import base_rollout

    from tools.bench.peers import tunix_models

    actor, config = tunix_models.profiler(args.size)
    frozen, _ = tunix_models.profiler(args.size)
    devices = np.array(jax.devices()[:1]).reshape(1, 1)
    mesh = jax.sharding.Mesh(devices, ("fsdp", "tp"))
    roles = rl_cluster.Role
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.adamw(1e-6),
        eval_every_n_steps=10**6,
        max_steps=args.steps + 1,
        mini_batch_size=args.users,
        train_micro_batch_size=args.users,
    )
    rollout = base_rollout.RolloutConfig(
        max_tokens_to_generate=args.new,
        max_prompt_length=args.prompt,
        kv_cache_size=args.prompt + args.new,
        temperature=1.0,
        top_p=1.0,
        eos_tokens=[1 << 30],
    )
    cluster = rl_cluster.RLCluster(
        actor=actor,
        reference=frozen,
        tokenizer=tunix_models.Numbers(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(
                (roles.ACTOR, roles.REFERENCE, roles.ROLLOUT), mesh
            ),
            rollout_engine="vanilla",
            training_config=training,
            rollout_config=rollout,
        ),
    )
    learner = grpo_learner.GRPOLearner(
        rl_cluster=cluster,
        algo_config=grpo_learner.GRPOConfig(
            num_generations=args.g, num_iterations=1, beta=0.01
        ),
        reward_fns=lambda prompts, completions, **_: [
            measure.reward([int(word) for word in text.split()]) for text in completions
        ],
    )
    names = ("step", "generation", "ref_logprob", "update")
    clocks: dict[str, list[measure.Clock]] = {name: [] for name in names}
    rolled = []

    def time_calls(owner, method, name, ready):
        inner = getattr(owner, method)

        def run(*positional, **named):
            with measure.Clock() as clock:
                out = inner(*positional, **named)
                jax.block_until_ready(ready(out))
            clocks[name].append(clock)
            if name == "generation":
                rolled.append(named["prompts"])
            return out

        setattr(owner, method, run)

    weights = lambda model: nnx.state(model, nnx.Param)
    trained = lambda: weights(cluster.actor_trainer.model)
    time_calls(cluster, "generate", "generation", lambda out: ())
    time_calls(cluster, "get_ref_per_token_logps", "ref_logprob", lambda out: out)
    time_calls(
        cluster, "update_actor", "update", lambda out: jax.tree.leaves(trained())
    )
    time_calls(learner, "_run_global_step", "step", lambda out: ())
    rng = np.random.default_rng(1)
    prompts = lambda: tunix_models.prompts(
        config.num_embed, args.users, args.prompt, rng
    )
    learner.train([{"prompts": np.array(prompts())} for _ in range(args.steps + 1)])

    def same(a, b):
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return all(np.array_equal(x, y) for x, y in pairs)

    measure.emit(
        "tunix",
        "grpo_step",
        args,
        params_m=round(sum(x.size for x in jax.tree.leaves(trained())) / 1e6, 2),
        actor_moved=not same(trained(), weights(frozen)),
        sampler_has_actor_weights=same(trained(), weights(cluster.rollout.model())),
        rollout_prompts=len(rolled[-1]),
        rollout_distinct_prompts=len(set(rolled[-1])),
        first_step_wall_s=round(clocks["step"][0].wall, 2),
        **{
            key: value
            for name in names
            for key, value in measure.seconds(
                name, clocks[name][1 : args.steps + 1]
            ).items()
        },
    )
