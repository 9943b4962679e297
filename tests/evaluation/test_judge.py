"""How often the judge is right."""

from blue.evaluation.judge import judge_accuracy
from tests.helpers.evaluated_world import choose


def test_judge_accuracy_says_when_it_is_no_result():
    profiles = ["tent"] * 100
    right = [["tent", "a", "b", "c"]] * 100
    result = judge_accuracy(choose, profiles=profiles, options=right)
    assert result["accuracy"] == 1.0 and result["low"] > 0.95 and result["note"] == ""
    quarter = [["tent", "a", "b", "c"]] * 25 + [["a", "tent", "b", "c"]] * 75
    result = judge_accuracy(choose, profiles=profiles, options=quarter)
    assert result["accuracy"] == result["chance"] == 0.25 and result["n"] == 100
    assert result["note"] == "reader at chance: not a result"
    tied = [["tent", "tent", "b", "c"]] * 100  # two right answers: no answer
    result = judge_accuracy(choose, profiles=profiles, options=tied)
    assert result["accuracy"] == 0.0
