"""Sections of the config as rewards, and the program that adds them up."""

import numpy as np
import pytest

from blue.errors import UserError
from blue.rewards.program import asks_judge, make_rewards, rewards_of, used_inputs
from blue.runtime.sharding import by_batch, make_mesh, put, to_host
from configs import base


@pytest.fixture
def sections():
    return base.get_config().rewards.to_dict()


def test_a_section_gives_the_arguments_that_a_reward_names(sections):
    found = rewards_of(sections)
    assert list(found) == list(sections)
    choice = found["choice"]
    assert choice.inputs == ("choice_scores", "choice_answer") and asks_judge(choice)
    assert choice.arguments == {"num_options": sections["choice"]["num_options"]}
    assert found["unfinished"].arguments == {} and not asks_judge(found["unfinished"])


def test_what_nobody_looks_at_is_not_computed(sections):
    sections["embedding"] |= {"profile": 0.0}
    found = rewards_of(sections)
    assert found["embedding"].unused == {"profile_emb"}
    used = used_inputs(found)
    assert "history_profile_emb" in used and "profile_emb" not in used
    assert used_inputs({}) == frozenset()


@pytest.mark.parametrize(
    "change, told",
    [
        ({"brevity": {"weight": 1.0}}, "brevity: no such reward; known are .*choice"),
        ({"combine": {"weight": 1.0}}, r"combine.*looks at parts, .* none of the inp"),
        ({"unfinished": {"weight": 1.0, "by": 2}}, "unfinished.by: no such field"),
        ({"unfinished": {}}, r"weight is missing; unfinished\(\) takes weight$"),
        ({"choice": {"weight": 1.0}}, "num_options is missing"),
    ],
)
def test_a_section_that_does_not_fit_is_one_line(sections, change, told):
    with pytest.raises(UserError, match=told) as error:
        rewards_of(sections | change)
    assert "\n" not in str(error.value)


def test_rewards_are_weighed_and_compared_in_their_group():
    sections = {"unfinished": {"weight": 2.0}, "repetition": {"weight": 1.0}}
    mesh = make_mesh(1, -1, 1)
    sizes = {"B": 8, "G": 2}
    rewards = make_rewards(rewards_of(sections), sizes, mesh)
    assert rewards.used == {"finished", "repeated_words"} and not rewards.need_judge()
    finished = np.ones((8, 2), bool)
    finished[0, 1] = False
    repeated = np.full((8, 2), 0.5, np.float32)
    repeated[1] = 0.0, 1.0
    repeated[2, 0] = np.nan  # could not be scored
    given = {"finished": finished, "repeated_words": repeated}
    advantages, teaching, total, parts = to_host(
        rewards.program(put(given, by_batch(mesh)))
    )
    # 2 * unfinished + repetition
    np.testing.assert_allclose(total[:2], [[-0.5, -2.5], [0.0, -1.0]])
    assert parts["unfinished"][0].tolist() == [0, -1]
    assert parts["repetition"][1].tolist() == [0, -1]
    assert np.isnan(total[2, 0]) and not teaching[2].any()  # its mate is alone
    assert advantages[0, 0] > 0 > advantages[0, 1] and teaching[:2].all()
    assert (advantages[3:] == 0).all()  # equal rewards


def test_a_judge_is_needed_where_its_reward_has_weight(sections):
    mesh = make_mesh(1, -1, 1)
    sizes = {"B": 8, "G": 2, "O": 3}
    for weight in (0.0, 1.0):
        choice = {"choice": {"weight": weight, "num_options": 3}}
        both = choice | {"unfinished": {"weight": 1.0}}
        rewards = make_rewards(rewards_of(both), sizes, mesh)
        assert rewards.need_judge() == bool(weight)
