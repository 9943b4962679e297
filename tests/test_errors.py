"""The ways a run ends early on purpose."""

import itertools

from blue.errors import NonFinite, Preempted, UserError


def test_none_is_caught_for_another():
    ends = (UserError, NonFinite, Preempted)
    for one, other in itertools.permutations(ends, 2):
        assert not issubclass(one, other)
    # code that catches what the standard library raises never swallows a stop
    for standard in (ValueError, OSError, RuntimeError):
        assert not issubclass(NonFinite, standard)
        assert not issubclass(Preempted, standard)
    assert issubclass(UserError, ValueError)
