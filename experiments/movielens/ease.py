"""EASE on the recorded MovieLens run, whose item pool is above evaluate.ease_max_items.

PYTHONPATH=. python experiments/movielens/ease.py RUN   (RUN: the evaluated workdir)

Ranks by EASE and popularity alone, on the run's users and candidates; writes ease.json.
"""

import json
import sys
from pathlib import Path

import numpy as np

from blue.evaluation import comparison, methods, metrics, protocols
from blue.evaluation.cohort import choose_cohort
from blue.sources.open_run import open_run
from blue.stages import evaluate
from blue.workdir import record

workdir = sys.argv[1]
run = open_run(record.load(workdir), workdir)
config, examples = run.config, run.examples
limit = config.evaluate.test_users
cohort = choose_cohort(examples.test, run.log.titles, limit=limit)
settings = evaluate.settings_of(config)._replace(ease_max_items=20_000)
rankers = comparison.rankers_without_encoder(
    methods.Task(run.log, examples, cohort, settings)
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
