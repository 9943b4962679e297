"""What rewards look at, worked by hand for two users of two profiles."""

import jax
import numpy as np
import pytest
from jaxtyping import Float

from blue.errors import UserError
from blue.inference.generate import Profile
from blue.rewards import inputs
from blue.rewards.batch import Batch

TITLES = ["red tent", "blue lamp", "green chair"]
ITEMS = np.eye(3, dtype=np.float32)


@pytest.fixture
def context():
    texts = [["jazz and jazz", ""], ["Jazz piano", "tea tea tea tea"]]
    finished = [[True, False], [True, True]]
    profiles = [
        [Profile(text, 3, end) for text, end in zip(*group, strict=True)]
        for group in zip(texts, finished, strict=True)
    ]
    batch = Batch(**dict.fromkeys(Batch._fields))._replace(
        next_items=np.array([[0], [2]]),
        negatives=np.array([[1, 2], [0, 1]]),
        options=np.array([[0, 1], [1, 2]]),
        answer=np.array([[1, 0], [0, 1]]),
    )
    return inputs.Context(batch, profiles, TITLES, ITEMS, None, {})


def test_inputs_of_the_text(context):
    assert inputs.finished(context).tolist() == [[True, False], [True, True]]
    # 2 words of 1; none at all; 2 of 2; 4 of 1
    found = inputs.repeated_words(context)
    np.testing.assert_allclose(found, [[0.5, 0.0], [0.0, 0.75]])


def test_inputs_of_the_items(context):
    assert inputs.next_item_emb(context).tolist() == [[[1, 0, 0]], [[0, 0, 1]]]
    assert inputs.negative_emb(context).shape == (2, 2, 3)
    assert inputs.negative_emb(context)[1, 1].tolist() == [0, 1, 0]
    answer = inputs.choice_answer(context)
    assert answer.tolist() == [[1, 0], [0, 1]] and answer.dtype == np.float32


def test_the_judge_sees_each_profile_with_its_users_options(context):
    asked = []

    def ask(profiles, options):
        asked.extend(zip(profiles, options, strict=True))
        return np.arange(8, dtype=np.float32).reshape(4, 2)

    scores = inputs.choice_scores(context._replace(ask=ask))
    assert scores.tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    first, second = ["red tent", "blue lamp"], ["blue lamp", "green chair"]
    assert [options for _, options in asked] == [first, first, second, second]
    assert asked[3][0] == "tea tea tea tea"
    with pytest.raises(AssertionError, match="without a judge"):
        inputs.choice_scores(context)


def test_only_functions_of_what_is_given_are_inputs():
    assert inputs.find("finished") is inputs.finished
    for other in ("compute", "find", "Context", "VIEWS", "no_such_thing"):
        assert inputs.find(other) is None
    assert {*inputs.VIEWS, *inputs.JUDGED} <= {*inputs.names()}


def test_the_return_type_says_the_shape():
    sizes = {"B": 4, "G": 3, "K": 1, "M": 9, "O": 2, "E": 16}
    shape_of = lambda name: inputs.shape_and_dtype(name, sizes)
    assert shape_of("choice_scores") == ((4, 3, 2), np.float32)
    assert shape_of("in_batch_mask") == ((4, 1, 4), np.bool_)
    assert sizes.keys() == inputs.SIZES.keys()


def test_an_input_of_another_shape_than_it_says_is_told(context, monkeypatch):
    def count(context: inputs.Context) -> Float[np.ndarray, "B G"]:
        return np.zeros((2, 1))

    monkeypatch.setattr(inputs, "count", count, raising=False)
    expected = jax.ShapeDtypeStruct((2, 2), np.float32)
    with pytest.raises(UserError, match=r"count has shape \(2, 1\), and .* \(2, 2\)"):
        inputs.compute("count", context, expected)
    found = inputs.compute("finished", context, expected)
    assert found.dtype == np.float32  # as the program takes it
