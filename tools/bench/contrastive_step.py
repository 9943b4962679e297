"""Contrastive steps of BLUE's encoder stage; prints one JSON line.

    python tools/bench/contrastive_step.py [--batch=64 --median=64 --hi=256 ...]

A random encoder of the Qwen3-Embedding kind takes steps in float32 on one core:
forward, backward and Adam, nothing recomputed. A step has `--batch` pairs of texts of
log-normal length, at most `--hi` tokens. Rows and program are the stage's:
`train_encoder.pack_pairs` and `updates.make_encoder_update`; packing is timed. The peer
at the same texts: tools/bench/peers/st_contrastive_step.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tools.bench import measure

if __name__ == "__main__":
    args = measure.parse(__doc__, [*measure.ENCODERS], **measure.CONTRASTIVE_STEP)

    import jax
    import numpy as np

    from blue.inference import packing
    from blue.runtime import programs
    from blue.runtime.sharding import by_batch, put
    from blue.stages import train_encoder
    from blue.training.contrastive import make_encoder_update, row_counts
    from tools.bench import ours

    cfg, mesh = ours.encoder(args.size), ours.one_device()
    schedule, optimizer = ours.adam(1e-5)
    counts = row_counts(args.batch, args.hi, args.hi, shards=1)
    steps = {}
    _, state = ours.start(cfg, mesh, optimizer)
    ids = np.arange(args.batch, dtype=np.int32)

    def rows_of(number):
        sides = [
            measure.texts(
                args.batch, vocab=cfg.vocab_size, median=args.median, most=args.hi,
                seed=2 * number + side,
            )
            for side in (0, 1)
        ]  # fmt: skip
        return [[[int(w) for w in text.split()] for text in side] for side in sides]

    def pack(number):
        return train_encoder.pack_pairs(
            *rows_of(number), length=args.hi, counts=counts, pad_id=measure.PAD
        )

    for number in range(args.steps + 1):  # only those that are needed
        count = len(pack(number)[0].tokens)
        if count not in steps:
            steps[count] = make_encoder_update(
                cfg, mesh, optimizer, schedule, packing.row_shapes(count, args.hi),
                ours.FLOAT32, pairs=args.batch, similarity_temperature=0.05,
            )  # fmt: skip
    programs.wait()
    losses, clocks, shapes = [], [], []
    for number in range(args.steps + 1):
        pairs = rows_of(number)
        with measure.Clock() as clock:
            rows, places = train_encoder.pack_pairs(
                *pairs, length=args.hi, counts=counts, pad_id=measure.PAD
            )
            batch = put((*rows[:5], places, ids), by_batch(mesh))
            state, told = steps[len(rows.tokens)](state, {}, *batch)
            jax.block_until_ready((state, told))
        losses.append(round(float(told["policy/loss"]), 4))
        clocks.append(clock)
        shapes.append(list(rows.tokens.shape))
    measure.emit(
        "blue", "contrastive_step", args, params_m=ours.num_params(state.params),
        rows=shapes, losses=losses,
        **measure.seconds("step", clocks[1:]),
    )  # fmt: skip
