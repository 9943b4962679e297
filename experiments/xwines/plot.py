"""Draws curves.png from curves.csv: reward, KL and validation over the steps.

python experiments/xwines/plot.py     (needs matplotlib)
"""

import csv
from pathlib import Path

HERE = Path(__file__).parent
PANELS = (  # stage, title, columns
    ("encoder", "encoder: contrastive loss", ("policy/loss",)),
    ("warm_start", "warm start: loss, nats a token", ("policy/loss",)),
    ("profiler", "GRPO: reward", ("reward/total", "reward/embedding")),
    ("profiler", "GRPO: added terms", ("reward/unfinished", "reward/repetition")),
    ("profiler", "GRPO: KL and entropy a token", ("policy/kl", "policy/entropy")),
    (
        "profiler",
        "GRPO: validation NDCG@10",
        ("eval/ndcg@10", "eval/profile_ndcg@10"),
    ),
)


def main() -> None:
    """One panel for each of PANELS."""
    try:
        from matplotlib import pyplot
    except ImportError:
        raise SystemExit(
            "curves.png needs matplotlib: pip install matplotlib"
        ) from None
    with (HERE / "curves.csv").open() as f:
        rows = list(csv.DictReader(f))
    figure, axes = pyplot.subplots(2, 3, figsize=(13, 6.5))
    for axis, (stage, title, names) in zip(axes.flat, PANELS, strict=True):
        for name in names:
            points = [
                (int(row["step"]) + 1, float(row[name]))
                for row in rows
                if row["stage"] == stage and row[name]
            ]
            style = "o-" if name.startswith("eval/") else "-"
            axis.plot(*zip(*points, strict=True), style, label=name, linewidth=1)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(HERE / "curves.png", dpi=80)


if __name__ == "__main__":
    main()
