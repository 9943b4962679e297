"""The validation metric."""

import numpy as np
import pytest

from blue.data import synthetic
from blue.evaluation import metrics
from blue.evaluation.cohort import choose_cohort
from blue.evaluation.validation import validation_ndcg
from blue.text import queries
from blue.text.templates import TEMPLATES
from blue.text.tokenizer import train_tokenizer
from tests.helpers.evaluated_world import (
    WORLD,
    embed,
    make_generate,
    num_tokens,
    prepare,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    log, _ = synthetic.make(0, synthetic.World(**WORLD))
    examples = prepare(log, tmp_path_factory.mktemp("examples"))
    return log, examples, train_tokenizer(log.titles, vocab_size=640)


def test_validation_is_the_mean_over_its_users(world):
    log, examples, tokenizer = world
    query_format = queries.QueryFormat(
        TEMPLATES["short"], "", 4, num_tokens(tokenizer), 99
    )
    prompt_format = queries.PromptFormat(TEMPLATES["short"], 8, tokenizer, 400)
    cohort = choose_cohort(examples.validation, log.titles, limit=12)
    generate = make_generate(log, examples, tokenizer, "trained")
    table = embed(log.texts)
    values = validation_ndcg(
        cohort,
        titles=log.titles,
        item_table=table,
        generate=generate,
        embed=embed,
        query_format=query_format,
        prompt_format=prompt_format,
    )
    both, alone, found = [], [], []
    next_items = table[cohort.candidates[:, 0]]
    prompt_ids = queries.profile_prompts(
        prompt_format, cohort.split, cohort.rows, log.titles
    )
    profiles = generate(prompt_ids, cohort.example_ids.tolist())
    for u, profile in enumerate(profiles):
        recent = ", ".join(cohort.histories[u][-4:])
        for ranks, text in ((both, f"{recent} {profile.text}"), (alone, profile.text)):
            scores = embed([text]) @ table[cohort.candidates[u]].T
            ranks.append(int(metrics.rank_of_target(np.round(scores, 6))[0]))
        found.append(int(np.argmax(embed([profile.text]) @ next_items.T)) == u)
    ndcg = lambda ranks: np.mean([1 / np.log2(r + 1) * (r <= 10) for r in ranks])
    assert values == pytest.approx(
        {
            "eval/ndcg@10": ndcg(both),
            "eval/recall@10": np.mean([r <= 10 for r in both]),
            "eval/mrr": np.mean([1 / r for r in both]),
            "eval/profile_ndcg@10": ndcg(alone),
            "eval/reid@1": np.mean(found),
            "eval/finished": 1.0,
        }
    )
