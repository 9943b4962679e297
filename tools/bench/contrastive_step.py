"""Contrastive steps of BLUE's encoder stage; prints one JSON line.

    python tools/bench/contrastive_step.py [--batch=64 --median=64 --hi=256 ...]

A random encoder of the Qwen3-Embedding kind in float32 on one core: forward, backward
and Adam on `--batch` pairs of texts of log-normal length, at most `--hi` tokens,
nothing recomputed. The program of the stage, `updates.make_encoder_update`. The peer at
the same texts: tools/bench/peers/st_contrastive_step.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tools.bench import measure

if __name__ == "__main__":
    args = measure.parse(
        __doc__,
        [*measure.ENCODERS],
        batch=(64, "pairs of texts"),
        median=(64, "tokens of a text, in the median"),
        hi=(256, "tokens of a text, at most"),
        steps=(4, "measured steps; one more compiles"),
    )

    import jax
    import numpy as np

    from blue import inference, programs, updates
    from blue.sharding import by_batch, put
    from tools.bench import ours

    cfg, mesh = ours.encoder(args.size), ours.one_device()
    schedule, optimizer = ours.adam(1e-5)
    update = updates.make_encoder_update(
        cfg, mesh, optimizer, schedule, batch_size=args.batch, query_tokens=args.hi,
        item_tokens=args.hi, similarity_temperature=0.05, remat="", **ours.DTYPES,
    )  # fmt: skip
    params, state = ours.start(cfg, mesh, optimizer)
    programs.wait()
    ids = np.arange(args.batch, dtype=np.int32)
    losses, clocks = [], []
    for number in range(args.steps + 1):
        sides = [
            measure.texts(
                args.batch, vocab=cfg.vocab_size, median=args.median, most=args.hi,
                seed=2 * number + side,
            )
            for side in (0, 1)
        ]  # fmt: skip
        rows = [[[int(w) for w in text.split()] for text in side] for side in sides]
        with measure.Clock() as clock:
            pad = lambda texts: inference.pad_left(texts, args.hi, measure.PAD)
            batch = put((*pad(rows[0]), *pad(rows[1]), ids), by_batch(mesh))
            state, told = update(state, {}, *batch)
            jax.block_until_ready((state, told))
        losses.append(round(float(told["policy/loss"]), 4))
        clocks.append(clock)
    measure.emit(
        "blue", "contrastive_step", args, params_m=ours.num_params(params),
        padded=[[args.batch, args.hi]] * 2, losses=losses,
        **measure.seconds("step", clocks[1:]),
    )  # fmt: skip
