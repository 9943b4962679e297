"""sentence-transformers embeds `--n` texts of mixed length; prints one JSON line.

`encode` of a random encoder of the Qwen3-Embedding kind in float32. Beside
tools/bench/encode.py.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
from tools.bench import measure

if __name__ == "__main__":
    args = measure.parse(__doc__, [*measure.ENCODERS], **measure.ENCODE)

    from tools.bench.peers import torch_models

    torch_models.use_threads(args.cpus)
    model = torch_models.encoder(args.size, tempfile.mkdtemp())
    vocab = measure.ENCODERS[args.size]["vocab"]
    texts = measure.texts(args.n, vocab=vocab, median=args.median)
    real = sum(len(text.split()) for text in texts)
    fed = 0

    def count(module, positional):
        global fed
        fed += positional[0]["input_ids"].numel()

    model[0].register_forward_pre_hook(count)
    whole = []
    for _ in range(args.reps + 1):
        fed = 0
        with measure.Clock() as clock:
            out = model.encode(texts, batch_size=args.batch, show_progress_bar=False)
        whole.append(clock)
    whole = whole[1:]
    assert abs((out**2).sum(axis=1) - 1).max() < 1e-4
    measure.emit(
        "sentence-transformers",
        "encode",
        args,
        params_m=torch_models.num_params(model),
        real_tokens=real,
        padded_tokens=fed,
        texts_per_s=measure.spread([args.n / c.wall for c in whole]),
        texts_per_cpu_s=measure.spread([args.n / c.cpu for c in whole]),
        real_tok_per_cpu_s=measure.spread([real / c.cpu for c in whole]),
        **measure.seconds("", whole),
    )
