"""Means of the curves of a run over blocks of steps, as CSV.

python tools/records/thin_metrics.py metrics.jsonl curves.csv [STEPS_A_BLOCK]
"""

import csv
import json
import sys

KEYS = """
reward/total reward/embedding reward/embedding_std reward/choice reward/repetition
policy/loss policy/kl policy/entropy policy/sampler_gap_max optim/grad_norm
rollout/length_mean rollout/truncated profile/mention_hallucination profile/in_history
profile/copied profile/repeated_3grams profile/boilerplate profile/distinct_words
eval/ndcg@10 eval/profile_ndcg@10 time/step_s
""".split()


def main(source: str, target: str, block: int) -> None:
    """Writes one row a stage and block: the mean of every key that the block has."""
    with open(source) as f:
        rows = [json.loads(line) for line in f]
    blocks: dict[tuple[str, int], list[dict]] = {}
    for row in rows:
        blocks.setdefault((row["stage"], row["step"] // block * block), []).append(row)
    with open(target, "w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["stage", "first_step", *KEYS])
        for (stage, first), members in blocks.items():
            means = []
            for key in KEYS:
                found = [m[key] for m in members if m.get(key) is not None]
                means.append(f"{sum(found) / len(found):.5g}" if found else "")
            table.writerow([stage, first, *means])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 25)
