"""Means of the curves of a run over blocks of steps, as CSV."""

import csv
import json
from pathlib import Path

KEYS = """
reward/total reward/embedding reward/embedding_std reward/choice reward/repetition
policy/loss policy/kl policy/entropy policy/sampler_gap_max optim/grad_norm
rollout/length_mean rollout/truncated profile/mention_hallucination profile/in_history
profile/copied profile/repeated_3grams profile/boilerplate profile/distinct_words
eval/ndcg@10 eval/profile_ndcg@10 time/step_s
""".split()


def write(source: Path, target: Path, *, block: int) -> None:
    """One row a stage and `block` steps: the mean of every key that the block has."""
    with source.open() as f:
        rows = [json.loads(line) for line in f]
    blocks: dict[tuple[str, int], list[dict]] = {}
    for row in rows:
        blocks.setdefault((row["stage"], row["step"] // block * block), []).append(row)
    with target.open("w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["stage", "first_step", *KEYS])
        for (stage, first), members in blocks.items():
            means = []
            for key in KEYS:
                found = [m[key] for m in members if m.get(key) is not None]
                means.append(f"{sum(found) / len(found):.5g}" if found else "")
            table.writerow([stage, first, *means])
