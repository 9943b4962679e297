"""What rewards look at: found by name, of the shape that the return type says."""

import jax
import numpy as np
import pytest

from blue.errors import UserError
from blue.inference.generate import Profile
from blue.rewards import inputs
from blue.rewards.program import rewards_of, used_inputs
from configs import base


def given(*groups):
    profiles = [[Profile(text, 1, bool(text)) for text in group] for group in groups]
    return inputs.Given(None, profiles, (), np.zeros((0, 4), np.float32), None, {})


def test_every_input_is_used_and_says_its_shape():
    sizes = {letter: n for n, letter in enumerate(inputs.SIZES, start=2)}
    names = inputs.names()
    assert {*inputs.VIEWS, *inputs.JUDGED} < {*names}
    assert used_inputs(rewards_of(base.get_config().rewards.to_dict())) == {*names}
    for name in names:
        shape, dtype = inputs.shape_and_dtype(name, sizes)
        assert shape[0] == sizes["B"] and dtype in (np.float32, np.bool_)
    found = inputs.shape_and_dtype("in_batch_mask", sizes)
    assert found == ((sizes["B"], sizes["K"], sizes["B"]), np.bool_)


def test_what_is_no_input_is_not_found():
    assert inputs.find("repeated_words") is inputs.repeated_words
    for name in ("find", "compute", "VIEWS", "Given", "queries", "nothing"):
        assert inputs.find(name) is None


def test_texts_by_hand():
    two = given(["red red tent", ""], ["blue lamp", "Red, red; RED"])
    words = inputs.compute("repeated_words", two, jax.ShapeDtypeStruct((2, 2), "f4"))
    np.testing.assert_allclose(words, [[1 / 3, 0], [0, 2 / 3]], rtol=1e-6)
    assert inputs.finished(two).tolist() == [[True, False], [True, True]]


def test_another_shape_than_the_return_type_says_is_told():
    expected = jax.ShapeDtypeStruct((1, 3), np.float32)
    with pytest.raises(UserError, match=r"has shape \(1, 2\), and .* says \(1, 3\)"):
        inputs.compute("repeated_words", given(["a", "b"]), expected)
