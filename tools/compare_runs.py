"""Two runs on the same test users: is one trained profiler better than the other?

python tools/compare_runs.py RUN_A RUN_B [--users N]

Both workdirs hold a finished profiler stage on the same log, split and encoder, such as
two rewards from one warm start. Each profiler writes a profile for every target of the
test users. The encoder of RUN_A's config ranks the same candidates by each profile
alone: 99 drawn uniformly, 99 by popularity^0.75. Prints NDCG@10 of both and the paired
difference B - A with its 95% interval over users and what was detectable.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # BLUE from this clone
from blue.errors import UserError
from blue.evaluation import metrics, protocols, report
from blue.evaluation.cohort import choose_cohort, write_profiles
from blue.sources.encoder import load_item_table, load_text_encoder
from blue.sources.open_run import Run, open_run
from blue.sources.profiler import load_profiler, make_generate
from blue.sources.text import prompt_format_of, query_format_of
from blue.text import queries
from blue.text.markdown import markdown_table
from blue.workdir import record


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs=2)
    parser.add_argument("--users", type=int, default=0)
    given = parser.parse_args(argv)
    config = record.load(given.runs[0])
    opened = open_run(config, given.runs[0])
    mesh, log, examples = opened.mesh, opened.log, opened.examples
    cohort = choose_cohort(examples.test, log.titles, limit=given.users)
    encoder = load_text_encoder(opened, config.encoder)
    table = load_item_table(encoder, log, given.runs[0])
    query_format = query_format_of(config, encoder)
    texts = {}
    for run in given.runs:
        own = record.load(run)
        profiler = load_profiler(Run(own, run, mesh, log), "trained")
        assert profiler is not None, f"{run}: no finished profiler stage"
        written = write_profiles(
            cohort,
            make_generate(
                own, profiler, mesh, temperature=own.evaluate.sampling_temperature
            ),
            titles=log.titles,
            prompt_format=prompt_format_of(own, profiler),
        )
        texts[run] = [queries.profile_query(query_format, p.text) for p in written]
    vectors = queries.embed_texts(encoder.embed, texts)
    ranker = protocols.by_cosine(tuple(texts), vectors, table)
    rows = []
    for name in ("1+99", "1+99-popularity"):
        _, candidates = protocols.draw_candidates(
            examples,
            examples.test,
            protocol=name,
            seed=config.seed,
            num=config.data.eval_negatives,
        )
        every = np.arange(len(cohort.rows))
        ranks, _ = protocols.rank_candidates(ranker, every, candidates[cohort.rows])
        a, b = (metrics.ndcg(of_run, k=10) for of_run in ranks)
        values = metrics.user_means(np.stack([a, b, b - a]), cohort.users)
        found = metrics.bootstrap_intervals(values, resamples=10_000, seed=config.seed)
        cells = [report.interval(i._asdict()) for i in found[:2]]
        cells.append(report.interval(found[2]._asdict(), signed=True))
        rows.append([name, *cells, f"{metrics.minimum_detectable(values)[2]:.3f}"])
    print(f"{len(np.unique(cohort.users))} test users, {len(cohort.rows)} targets\n")
    header = ["NDCG@10", *(Path(run).name for run in given.runs), "difference"]
    print(markdown_table([*header, "detectable"], rows))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
