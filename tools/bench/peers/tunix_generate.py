"""Tunix samples `--g` completions for each of `--users` prompts; prints one JSON line.

Its Sampler with a random Gemma 3 in float32. Prompts are repeated `--g` times before
the call, as its GRPO learner does. Beside tools/bench/generate.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
from tools.bench import measure

if __name__ == "__main__":
    args = measure.parse(__doc__, [*measure.SIZES], **measure.GENERATE)

    import jax
    import numpy as np
    from tunix.generate import sampler as tunix_sampler

    from tools.bench.peers import tunix_models

    model, config = tunix_models.profiler(args.size)
    texts = tunix_models.prompts(
        config.num_embed, args.users, args.prompt, np.random.default_rng(1)
    )
    texts = [text for text in texts for _ in range(args.g)]
    cache = tunix_sampler.CacheConfig(
        args.prompt + args.new, config.num_layers, config.num_kv_heads, config.head_dim
    )
    sampler = tunix_sampler.Sampler(model, tunix_models.Numbers(), cache)
    clocks = {"prefill": [], "decode": []}

    def timed(name, call):
        def run(*positional, **named):
            with measure.Clock() as clock:
                out = jax.block_until_ready(call(*positional, **named))
            clocks[name].append(clock)
            return out

        return run

    sampler._compiled_prefill_fn = timed("prefill", sampler._compiled_prefill_fn)
    sampler._compiled_decode_fn = timed("decode", sampler._compiled_decode_fn)
    whole = []
    for number in range(args.reps + 1):
        with measure.Clock() as clock:
            out = sampler(
                texts,
                max_generation_steps=args.new,
                max_prompt_length=args.prompt,
                temperature=1.0,
                top_p=1.0,
                seed=number,
                eos_tokens=[1 << 30],
            )
        assert {len(tokens) for tokens in out.tokens} == {args.new}
        whole.append(clock)
    params = jax.tree.leaves(sampler.transformer_state)
    measure.emit(
        "tunix",
        "generate",
        args,
        params_m=round(sum(x.size for x in params) / 1e6, 2),
        first_call_s=round(whole[0].wall, 2),
        prefill_input=[len(texts), args.prompt],
        **measure.generation_figures(
            args, whole[1:], clocks["prefill"][1:], clocks["decode"][1:], args.new
        ),
    )
