"""Peaks and rooflines."""

import pytest

from blue.runtime.chips import BY_KIND, BY_NAME, CHIPS, GIB, roofline


def test_times_are_work_over_peak():
    chip = BY_NAME["v6e"]
    found = roofline(459e12, 1638e9, 100e9, chip)
    assert found == pytest.approx((0.5, 1.0, 0.25))
    assert found.bound == "memory" and found.seconds == pytest.approx(1.0)
    assert roofline(918e12, 0, 0, chip).bound == "compute"
    assert roofline(0, 1, 1000, chip).bound == "network"


def test_what_a_program_may_have_is_less_than_the_box_says():
    for name, printed in (("v5e", 16), ("v5p", 96), ("v6e", 32)):
        assert 0.97 * printed < BY_NAME[name].hbm_bytes / GIB < printed


def test_each_chip_has_its_own_name_and_kind():
    assert len(BY_NAME) == len(BY_KIND) == len(CHIPS)
    assert BY_KIND["TPU v6 lite"].name == "v6e" and BY_KIND["TPU v5"].name == "v5p"
    # a ridge of 100 to 700 FLOP a byte: a slip of a thousand is outside
    assert all(100 < chip.flops / chip.hbm_bandwidth < 700 for chip in CHIPS)
    assert all(3 < chip.hbm_bandwidth / chip.network_bandwidth < 12 for chip in CHIPS)
