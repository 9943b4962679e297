"""Fields that have a new name."""

import pytest

from blue.errors import UserError
from blue.workdir import renamed, settings
from configs import base


def test_every_new_name_is_a_field_and_no_old_one_is():
    fields = dict(settings.leaves(base.get_config()))
    assert {*renamed.NEW_NAMES.values()} <= set(fields)
    assert not {*renamed.NEW_NAMES} & set(fields)


def test_an_old_name_is_told_its_new_one():
    renamed.refuse(["lr", "judge.model"], "my.py")
    told = "my.py: rewards.choice.reader is now judge.model"
    with pytest.raises(UserError, match=told):
        renamed.refuse(["lr", "rewards.choice.reader"], "my.py")


def test_what_a_run_wrote_down_is_read_under_new_names():
    old = {
        "lr": 1.0,
        "rewards": {"choice": {"weight": 2.0, "reader": "policy"}, "none": {}},
    }
    found = renamed.with_new_names(old)
    assert found == {
        "lr": 1.0,
        "rewards": {"choice": {"weight": 2.0}, "none": {}},
        "judge": {"model": "policy"},
    }
    assert renamed.with_new_names(found) == found
    assert old["rewards"]["choice"]["reader"] == "policy"  # left as it was
