"""What the warm start shows the profiler, by hand."""

import numpy as np

from blue.hub.model import Model
from blue.models import families
from blue.stages.warm_start import random_prefix, short_profile
from blue.text.templates import TEMPLATES
from tests.helpers.small_model import few_words
from tests.helpers.small_world import make_split


def test_a_prefix_ends_before_the_item_it_asks_for():
    split = make_split([[3, 1, 4, 2], [5]], [7, 6], [0, 1], np.zeros((2, 0)))
    rng = np.random.default_rng(0)
    ends = set()
    for _ in range(60):
        items, ratings, following = random_prefix(split, 0, rng, least=2)
        assert [*items, following] == [3, 1, 4, 2, 7][: len(items) + 1]
        assert len(ratings) == len(items)
        ends.add(len(items))
    assert ends == {2, 3, 4}  # never fewer than `least`, up to all but the target
    items, _, following = random_prefix(split, 1, rng, least=2)
    assert items.tolist() == [5] and following == 6  # a short history is taken whole


def test_a_profile_that_does_not_fit_names_fewer_things():
    tokenizer = few_words()
    model = Model(families.preset("tiny_gemma3"), {}, tokenizer, "ours")
    write = lambda most: short_profile(
        TEMPLATES["short"], ["red tent", "blue lamp", "green chair"], model,
        num_items=6, max_tokens=most, rng=np.random.default_rng(0),
    )  # fmt: skip
    whole = write(99)
    assert whole[-1] == tokenizer.turn_end_id
    assert tokenizer.decode(whole[:-1]).startswith("The user likes ")
    shorter = write(len(whole) - 1)
    assert len(shorter) < len(whole) and shorter[-1] == tokenizer.turn_end_id
    assert write(2) == write(99)[:2]  # one thing is as short as it gets: cut
