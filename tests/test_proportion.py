"""Wilson's interval of a share, against scipy's."""

import pytest
from scipy.stats import binomtest

from lab.record.proportion import wilson


@pytest.mark.parametrize("count", [1, 2, 25, 200, 1319])
@pytest.mark.parametrize("level", [0.95, 0.9])
def test_the_interval_of_a_share_is_scipys(count, level):
    for right in {0, 1, count // 3, count - 1, count}:
        theirs = binomtest(right, count).proportion_ci(level, method="wilson")
        # both are closed forms in float64 of a dozen operations: 1e-12 is thousands of roundings
        assert wilson(right / count, count, level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_a_share_of_nothing_right_leaves_room_above_it_alone():
    low, high = wilson(0.0, 200)
    assert low == 0
    assert 0.018 < high < 0.019  # z²/(n + z²)
