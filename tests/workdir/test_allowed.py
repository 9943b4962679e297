"""Values that fields may have."""

from blue.workdir import allowed, settings
from configs import base


def test_every_field_with_limits_exists_and_its_default_is_allowed():
    fields = dict(settings.leaves(base.get_config()))
    named = {*allowed.MAY_BE_MINUS_1, *allowed.ABOVE_ZERO, *allowed.BELOW_ONE}
    named |= {*allowed.ONE_OF, *allowed.NOT_EMPTY}
    for bounds in (allowed.AT_LEAST, allowed.AT_MOST):
        named |= {name for names in bounds.values() for name in names}
    assert named <= set(fields)
    assert set(allowed.NOT_EMPTY) <= set(allowed.ONE_OF)
