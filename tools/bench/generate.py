"""BLUE samples `--g` completions for each of `--users` prompts; prints one JSON line.

    python tools/bench/generate.py [--size=small] [--users=2 ...]

A random Gemma 3 in float32 on one core, temperature 1, no end token: every completion
has `--new` tokens. The stage's own programs, `sampling.make_sample`; the parameters are
in the decode layout before the clock starts. Peers at the same work:
tools/bench/peers/tunix_generate.py and transformers_generate.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tools.bench import measure

if __name__ == "__main__":
    args = measure.parse(__doc__, [*measure.SIZES], **measure.GENERATE)

    import jax
    import numpy as np

    from blue.inference import sampling
    from blue.models.params import make_init
    from blue.runtime.shapes import Sampling, Shapes
    from blue.runtime.sharding import by_batch, put, replicated
    from tools.bench import ours

    cfg, mesh = ours.profiler(args.size), ours.one_device()
    shapes = Shapes(args.users, args.prompt, args.g, args.new)
    draws = Sampling(1.0, top_k=0, top_p=1.0, end_ids=(-1,), pad_id=measure.PAD)
    sample = sampling.make_sample(cfg, mesh, shapes, draws, "float32")
    prefill = sample.prefill
    params = make_init(cfg, mesh, "float32")(np.uint32(0))
    params = sampling.make_relayout(cfg, mesh, ours.FLOAT32)(params)
    tokens, mask, ids = put(ours.prompts(cfg, args.users, args.prompt), by_batch(mesh))
    first, whole, prompt_only, rest = 0.0, [], [], []
    for number in range(args.reps + 1):
        seeds = put(np.array([number, 0, 0], np.uint32), replicated(mesh))
        with measure.Clock() as alone:
            jax.block_until_ready(prefill(params, tokens, mask))
        with measure.Clock() as clock:
            out = jax.block_until_ready(sample(params, tokens, mask, ids, seeds))
        assert bool(out.mask.all()), "a completion has ended early"
        if number == 0:
            first = alone.wall + clock.wall
            continue
        decode = measure.Clock()
        decode.wall, decode.cpu = clock.wall - alone.wall, clock.cpu - alone.cpu
        whole.append(clock)
        prompt_only.append(alone)
        rest.append(decode)
    measure.emit(
        "blue", "generate", args, params_m=ours.num_params(params),
        first_call_s=round(first, 2), prefill_input=[args.users, args.prompt],
        **measure.generation_figures(args, whole, prompt_only, rest, args.new),
    )  # fmt: skip
