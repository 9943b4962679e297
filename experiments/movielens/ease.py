"""EASE on the recorded MovieLens run, whose item pool is above evaluate.ease_max_items.

PYTHONPATH=. python experiments/movielens/ease.py RUN   (RUN: the evaluated workdir)

Ranks by EASE and popularity alone, on the run's users and candidates; writes ease.json.
"""

import json
import sys
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from blue.evaluation import comparison, metrics, protocols
from blue.evaluation.cohort import choose_cohort
from blue.sources.data import load_examples, load_log

run = Path(sys.argv[1])
config = ConfigDict(json.loads((run / "config.json").read_text())["config"])
log = load_log(config, str(run))
examples = load_examples(config, log, str(run))
cohort = choose_cohort(examples.test, log.titles, limit=config.evaluate.test_users)
rankers = comparison.rankers_without_encoder(
    log,
    examples,
    cohort,
    seed=config.seed,
    ease_l2=config.evaluate.ease_l2,
    ease_max_items=20_000,
)
found: dict[str, dict] = {}
for name in ("1+99", "1+99-popularity"):
    _, candidates = protocols.draw_candidates(
        examples,
        examples.test,
        protocol=name,
        seed=config.seed,
        num=config.data.eval_negatives,
    )
    for ranker in rankers:
        rows = np.arange(len(cohort.rows))
        ranks, _ = protocols.rank_candidates(ranker, rows, candidates[cohort.rows])
        values = np.stack([metrics.ndcg(r, k=10) for r in ranks])
        by_user = metrics.user_means(values, cohort.users)
        intervals = metrics.bootstrap_intervals(
            by_user, resamples=10_000, seed=config.seed
        )
        for method, interval in zip(ranker.names, intervals, strict=True):
            found.setdefault(method, {})[name] = {
                key: round(value, 5) for key, value in interval._asdict().items()
            }
text = json.dumps(found, indent=1)
(Path(__file__).parent / "ease.json").write_text(text + "\n")
print(text)
