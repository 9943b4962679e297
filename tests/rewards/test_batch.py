"""Prompts, negatives and options of a batch of three users, by hand."""

import numpy as np
import pytest

from blue.data.log import Log
from blue.errors import UserError
from blue.rewards.batch import BatchSource, make_batch
from blue.text.queries import PromptFormat
from tests.helpers.small_model import SHORT, WORDS, few_words
from tests.helpers.small_world import make_examples, make_split

SPLIT = make_split([[0, 1], [2], [3]], [4, 5, 6], [0, 1, 2], np.zeros((3, 0)))
EXAMPLES = make_examples(SPLIT, [1] * 10)
LOG = Log(
    **dict.fromkeys(Log._fields) | {"titles": WORDS, "user_ids": ["ann", "bo", "cy"]}
)


@pytest.fixture(scope="module")
def source():
    form = PromptFormat(SHORT, history_items=9, tokenizer=few_words(), max_tokens=200)
    return BatchSource(EXAMPLES, LOG, form, num_negatives=4, num_options=3, seed=7)


def test_a_batch_holds_what_its_users_had_and_took(source):
    batch = make_batch(SPLIT, np.array([0, 2]), 5, source)
    assert batch.histories == [["red", "blue"], ["tent"]]
    assert batch.users == ["ann", "cy"] and batch.ids.tolist() == [100, 102]
    assert batch.next_items.tolist() == [[4], [6]] and batch.next_item_mask.all()
    texts = [source.prompt_format.tokenizer.decode(ids) for ids in batch.prompts]
    assert "red" in texts[0] and "tent" in texts[1] and "red" not in texts[1]
    # each may stand as the other's negative: other users, other items
    assert batch.in_batch_mask[:, 0].tolist() == [[False, True], [True, False]]
    for row, owned in enumerate(({0, 1, 4}, {3, 6})):
        assert batch.negative_mask[row].all()
        assert not owned & set(batch.negatives[row].tolist())


def test_the_options_are_the_next_item_and_negatives_shuffled(source):
    places = set()
    for step in range(20):
        batch = make_batch(SPLIT, np.array([0, 1, 2]), step, source)
        assert (batch.answer.sum(axis=1) == 1).all()
        right = batch.options[batch.answer == 1]
        assert right.tolist() == [4, 5, 6]
        for row, options in enumerate(batch.options):
            wrong = options[batch.answer[row] == 0]
            assert set(wrong) == set(batch.negatives[row, :2])
        places |= set(batch.answer.argmax(axis=1).tolist())
    assert places == {0, 1, 2}


def test_a_row_does_not_depend_on_its_batch(source):
    all_three = make_batch(SPLIT, np.array([0, 1, 2]), 3, source)
    alone = make_batch(SPLIT, np.array([1]), 3, source)
    for field in ("negatives", "options", "answer", "prompts", "histories"):
        np.testing.assert_array_equal(
            getattr(alone, field)[0], getattr(all_three, field)[1]
        )
    later = make_batch(SPLIT, np.array([1]), 4, source)
    assert (later.negatives != alone.negatives).any()


def test_too_few_items_for_a_question_are_told(source):
    few = source._replace(num_negatives=9, num_options=10)
    with pytest.raises(
        UserError, match="num_options = 10: an example has fewer than 9"
    ):
        make_batch(SPLIT, np.array([0]), 0, few)


def test_just_enough_items_for_a_question_are_enough(source):
    just = source._replace(num_negatives=9, num_options=8)  # 10 items, 3 of them ann's
    batch = make_batch(SPLIT, np.array([0]), 0, just)
    assert batch.negative_mask.sum() == 7
    assert set(batch.options[0]) == set(range(10)) - {0, 1}
