"""Which item template suits an encoder: N@10 of validation users' raw history.

python tools/choose_template.py --config=configs/X.py --workdir=DIR [--config.FIELD=V]
    --templates FILE [--users N]

FILE holds one item template a line. For each, the item texts are embedded. The next
items of validation users are ranked among their stored negatives in two ways. One is by
the mean vector of the recent items, the other by the rule-made pseudo item. Only the
encoder of the config is needed: no profiler, no training. Prints a Markdown table; the
best row by the mean of both columns is the choice.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # BLUE from this clone
from blue.data.examples import history
from blue.errors import UserError
from blue.evaluation import baselines, metrics, protocols, report
from blue.evaluation.cohort import choose_cohort
from blue.runtime import sharding
from blue.sources.data import load_examples, load_log
from blue.sources.encoder import load_text_encoder
from blue.sources.open_run import Run
from blue.text.markdown import markdown_table
from blue.workdir import settings


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--templates", required=True, type=Path)
    parser.add_argument("--users", type=int, default=200)
    own, rest = parser.parse_known_args(argv)
    config, workdir = settings.load(["choose_template", *rest])
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    rows = []
    for template in own.templates.read_text().splitlines():
        config.data.item_template = template
        # the same wording without the title, which names one item alone
        pseudo = template.partition("}")[2].lstrip(" .,|-") or template
        config.data.pseudo_item_template = pseudo
        log = load_log(config, workdir)
        examples = load_examples(config, log, workdir)
        cohort = choose_cohort(examples.validation, log.titles, limit=own.users)
        recent = [
            history(cohort.split, int(row))[0][-config.prompts.recent_items :]
            for row in cohort.rows
        ]
        encoder = load_text_encoder(Run(config, workdir, mesh, log), config.encoder)
        # of the catalogue only what is ranked or read
        shown = np.unique(np.concatenate([cohort.candidates.ravel(), *recent]))
        table = np.zeros((len(log.texts), encoder.embed(["a"]).shape[1]), np.float32)
        table[shown] = encoder.embed([log.texts[i] for i in shown.tolist()])
        pseudo_items = baselines.pseudo_items(pseudo, log.columns, recent)
        queries = np.stack(
            [
                protocols.unit(
                    np.stack([table[items].mean(axis=0) for items in recent])
                ),
                encoder.embed(pseudo_items),
            ]
        )
        ranker = protocols.by_cosine(("vectors", "pseudo item"), queries, table)
        every = np.arange(len(cohort.rows))
        ranks, _ = protocols.rank_candidates(ranker, every, cohort.candidates)
        values = np.stack([metrics.ndcg(r, k=10) for r in ranks])
        by_user = metrics.user_means(values, cohort.users)
        found = metrics.bootstrap_intervals(by_user, resamples=2000, seed=config.seed)
        cells = [report.interval(i._asdict()) for i in found]
        mean = f"{by_user.mean():.3f}"
        rows.append([f"`{template}`", *cells, mean])
        print(rows[-1], file=sys.stderr)
    header = ["item template", "mean of recent vectors", "pseudo item", "mean of both"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
