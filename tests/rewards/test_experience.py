"""`score`: what is asked of the judge and of the encoder, and what comes of it."""

import jax
import numpy as np
import pytest

from blue.inference.embed import TextEncoder
from blue.inference.generate import Profile
from blue.rewards import experience, program
from blue.rewards.batch import Batch
from blue.rewards.experience import Scorer, Texts, score
from blue.rewards.program import rewards_of, used_inputs
from blue.runtime.sharding import make_mesh
from blue.text import queries
from blue.text.templates import TEMPLATES
from configs import base

B, G, E = 8, 2, 3

SIZES = {"B": B, "G": G, "E": E, "K": 1, "M": 2, "O": 2}


def scorer_of(weight, ask):
    """Rewards with this weight of the multiple choice, and a judge."""
    sections = base.get_config().rewards.to_dict()
    sections["choice"] = {"weight": weight, "num_options": 2}
    sections["embedding"]["profile"] = 0.0
    mesh = make_mesh(1, -1, 1)
    rewards = program.make_rewards(program.rewards_of(sections), SIZES, mesh)
    items = np.eye(4, E, dtype=np.float32)
    return Scorer(None, None, None, ["a", "b", "c", "d"], items, ask, rewards, mesh)


def batch():
    two = np.tile(np.array([[0, 3]]), (B, 1))
    return Batch(
        histories=[], prompts=[], ids=np.arange(B), users=[],
        next_items=np.zeros((B, 1), int), next_item_mask=np.ones((B, 1), bool),
        negatives=two, negative_mask=np.ones((B, 2), bool),
        in_batch_mask=np.zeros((B, 1, B), bool), options=two,
        answer=np.tile(np.array([[1, 0]], np.int32), (B, 1)),
    )  # fmt: skip


def texts():
    profiles = [[Profile("red", 1, True), Profile("red red", 2, False)]] * B
    view = np.zeros((B, G, E), np.float32)
    view[..., 0] = 1
    return Texts(
        profiles, np.ones((B, G, 2), bool), lambda: {"history_profile_emb": view}, {}
    )


def prefers_long(params, profiles, options):
    assert params == {"judge": 1} and options == [["a", "d"]] * (B * G)
    return np.array([[len(p), 5.0] for p in profiles])  # 3 and 7 letters


def test_the_judge_answers_for_every_profile():
    scorer = scorer_of(2.0, prefers_long)
    assert scorer.rewards.need_judge()
    got = score({"judge": 1}, batch(), texts(), scorer)
    np.testing.assert_array_equal(got.parts["choice"], [[0, 1]] * B)
    # cosine 1 with the next item and with the negative that is it, 0 with the other
    want = -np.log(2 + np.exp(-1 / 0.07))
    np.testing.assert_allclose(got.parts["embedding"], want / 2, rtol=1e-4)
    np.testing.assert_allclose(got.total, got.parts["embedding"] + [[0, 2]], rtol=1e-5)
    np.testing.assert_allclose(got.advantages, [[-1, 1]] * B, atol=1e-4)
    assert isinstance(got.device_advantages, jax.Array)
    assert {"time/reward_s", "time/embed_s"} <= got.metrics.keys()


def test_without_weight_the_judge_is_only_asked_where_it_is_given():
    def never(*question):
        raise AssertionError("asked")

    scorer = scorer_of(0.0, never)
    assert not scorer.rewards.need_judge()
    got = score(None, batch(), texts(), scorer)
    assert set(got.parts) == {"embedding", "unfinished", "repetition"}
    np.testing.assert_array_equal(got.parts["unfinished"], [[0, -1]] * B)
    np.testing.assert_array_equal(got.parts["repetition"], [[0, -0.5]] * B)
    np.testing.assert_allclose(got.total, got.parts["embedding"])
    with pytest.raises(AssertionError, match="asked"):
        score({"judge": 1}, batch(), texts(), scorer)


# --- beside the devices


def fake_encoder(start):
    return TextEncoder(None, start, len, 10**6, 3, "fake", "fake")


def batch_of(histories):
    fields = dict.fromkeys(Batch._fields)
    return Batch(**fields | {"histories": histories})


def profiles_of(texts):
    return [[Profile(t, 1, True) for t in group] for group in texts]


QUERY = queries.QueryFormat(TEMPLATES["short"], "", 2, len, 10**6)

GROUPS = [["p", "q"], ["r", "s"], ["t", "u"]]

HISTORIES = [["x", "y", "z"], ["x"], ["w"]]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 2.0), (0.5, 0.0), (0.0, 0.0)])
def test_a_view_of_weight_zero_is_not_embedded(weights):
    seen = []

    def start(texts):
        seen.extend(texts)
        vectors = np.array([[len(t), i, 1] for i, t in enumerate(texts)], np.float32)
        return lambda: vectors.reshape(len(texts), 3)

    sections = base.get_config().rewards.to_dict()
    sections["embedding"] |= dict(
        zip(("history_profile", "profile"), weights, strict=True)
    )
    used = used_inputs(rewards_of(sections))
    vectors = experience.start_embedding(
        profiles_of(GROUPS), batch_of(HISTORIES), fake_encoder(start), QUERY, used
    )()
    both = [
        queries.history_profile_query(QUERY, h, p)
        for h, group in zip(HISTORIES, GROUPS, strict=True)
        for p in group
    ]
    alone = [queries.profile_query(QUERY, p) for group in GROUPS for p in group]
    assert seen == both * bool(weights[0]) + alone * bool(weights[1])
    views = {"history_profile_emb": both, "profile_emb": alone}
    expected = [name for name, w in zip(views, weights, strict=True) if w]
    assert list(vectors) == expected
    row = 0
    for name, view in vectors.items():
        texts = views[name]
        assert view.shape == (3, 2, 3)
        np.testing.assert_array_equal(view[..., 0].ravel(), [len(t) for t in texts])
        np.testing.assert_array_equal(view[..., 1].ravel(), np.arange(row, row + 6))
        row += 6
