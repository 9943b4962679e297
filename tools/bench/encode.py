"""BLUE embeds `--n` texts of mixed length; prints one JSON line.

    python tools/bench/encode.py [--n=256 --batch=32 --median=128 ...]

A random encoder of the Qwen3-Embedding kind in float32 on one core; lengths are
log-normal around `--median` tokens, at most 1,024. Tokenizing counts. The text encoder
of the stages, `sources.own_encoder`, with the buckets of configs/base.py. The peer at
the same texts: tools/bench/peers/st_encode.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tools.bench import measure

if __name__ == "__main__":
    args = measure.parse(__doc__, [*measure.ENCODERS], **measure.ENCODE)

    import numpy as np

    from tools.bench import ours

    cfg = ours.encoder(args.size)
    encoder, params_m = ours.text_encoder(cfg, args.batch)
    texts = measure.texts(args.n, vocab=cfg.vocab_size, median=args.median)
    real = sum(len(text.split()) for text in texts)
    whole = []
    for _ in range(args.reps + 1):
        with measure.Clock() as clock:
            vectors = encoder.embed(texts)
        whole.append(clock)
    whole = whole[1:]
    assert vectors.shape == (args.n, cfg.width)
    assert np.abs((vectors**2).sum(axis=1) - 1).max() < 1e-4
    measure.emit(
        "blue", "encode", args, params_m=params_m, real_tokens=real,
        texts_per_s=measure.spread([args.n / c.wall for c in whole]),
        texts_per_cpu_s=measure.spread([args.n / c.cpu for c in whole]),
        real_tok_per_cpu_s=measure.spread([real / c.cpu for c in whole]),
        **measure.seconds("", whole),
    )  # fmt: skip
