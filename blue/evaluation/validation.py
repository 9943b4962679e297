"""Validation while training."""

import numpy as np
from jaxtyping import Float

from blue.evaluation import metrics, panel, protocols
from blue.evaluation.cohort import Cohort, Generate, write_profiles
from blue.inference.embed import Embed
from blue.text import queries
from blue.text.queries import PromptFormat, QueryFormat


def validation_ndcg(
    cohort: Cohort,
    *,
    titles: list[str],
    item_table: Float[np.ndarray, "items E"],
    generate: Generate,
    embed: Embed,
    query_format: QueryFormat,
    prompt_format: PromptFormat,
) -> dict[str, float]:
    """`eval/*` metrics of the profiler behind `generate` on validation users.

    All are means over users in [0, 1]:

    * `eval/ndcg@10`, by which `best` is chosen, `eval/recall@10` and `eval/mrr` rank
      with recent history + profile;
    * `eval/profile_ndcg@10` ranks with the profile alone;
    * `eval/reid@1` is how often a profile is nearest to its own user's next item;
    * `eval/finished` is the share with an end token.
    """
    assert cohort.histories, "no validation users"
    profiles = write_profiles(
        cohort, generate, titles=titles, prompt_format=prompt_format
    )
    written = [p.text for p in profiles]
    pairs = zip(cohort.histories, written, strict=True)
    views = {
        "both": [queries.history_profile_query(query_format, h, p) for h, p in pairs],
        "alone": [queries.profile_query(query_format, p) for p in written],
    }
    vectors = queries.embed_texts(embed, views)
    ranker = protocols.by_cosine(tuple(views), vectors, item_table)
    rows = np.arange(len(cohort.rows))
    ranks, _ = protocols.rank_candidates(ranker, rows, cohort.candidates)
    both, alone = (metrics.ranking_metrics(of_view) for of_view in ranks)
    by_row = {f"eval/{key}": value for key, value in both.items()}
    by_row["eval/profile_ndcg@10"] = alone["ndcg@10"]
    next_items = np.asarray(item_table[cohort.candidates[:, 0]], np.float32)
    by_row["eval/reid@1"] = panel.reid_at_1(vectors[1], next_items, cohort.users)
    by_row["eval/finished"] = np.array([float(p.finished) for p in profiles])
    means = metrics.user_means(np.stack([*by_row.values()]), cohort.users).mean(axis=1)
    return dict(zip(by_row, means.tolist(), strict=True))
