"""Steps of sentence-transformers' symmetric ranking loss; prints one JSON line.

MultipleNegativesSymmetricRankingLoss, backward, AdamW, for a random encoder of the
Qwen3-Embedding kind in float32. Beside tools/bench/contrastive_step.py. Each side is
padded to its longest text, as the library does.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
from tools.bench import measure

if __name__ == "__main__":
    args = measure.parse(__doc__, [*measure.ENCODERS], **measure.CONTRASTIVE_STEP)

    import torch
    from sentence_transformers.sentence_transformer import losses

    from tools.bench.peers import torch_models

    torch_models.use_threads(args.cpus)
    model = torch_models.encoder(args.size, tempfile.mkdtemp()).train()
    vocab = measure.ENCODERS[args.size]["vocab"]
    loss_of = losses.MultipleNegativesSymmetricRankingLoss(model, scale=20.0)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-5)
    clocks: dict[str, list[measure.Clock]] = {}
    told, shapes = [], []
    for number in range(args.steps + 1):
        sides = [
            measure.texts(
                args.batch,
                vocab=vocab,
                median=args.median,
                most=args.hi,
                seed=2 * number + side,
            )
            for side in (0, 1)
        ]
        features = [model.preprocess(side) for side in sides]
        with measure.Clock() as step:
            with measure.Clock() as forward:
                loss = loss_of(features, labels=None)
            with measure.Clock() as backward:
                loss.backward()
                adam.step()
                adam.zero_grad()
        told.append(round(loss.item(), 4))
        shapes = [list(side["input_ids"].shape) for side in features]
        for name, clock in (("step", step), ("forward", forward)):
            clocks.setdefault(name, []).append(clock)
        clocks.setdefault("backward", []).append(backward)
    measure.emit(
        "sentence-transformers",
        "contrastive_step",
        args,
        params_m=torch_models.num_params(model),
        padded=shapes,
        losses=told,
        **{
            key: value
            for name in clocks
            for key, value in measure.seconds(name, clocks[name][1:]).items()
        },
    )
