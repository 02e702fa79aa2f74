"""Calibrated p values: against scipy at each look, and against fresh paths over all of them."""

import numpy as np
import pytest
from scipy import stats

from lab.errors import UsageError
from lab.verdict import null_table
from lab.verdict.null_table import FIRST_LOOK, HORIZONS, LEVELS, SIDES
from lab.verdict.sequential import contrast, moments, paired_p, running, tost_p

# Nominal levels at which a look decides, from an independent simulation of 120,000 paths (2 % Monte Carlo error).
INDEPENDENT = {
    (2, 12): {0.05: 0.0126, 0.025: 0.0057, 0.05 / 3: 0.0036, 0.0125: 0.0026},
    (2, 20): {0.05: 0.0088, 0.025: 0.0040, 0.05 / 3: 0.0026, 0.0125: 0.0018},
    (1, 12): {0.05: 0.0143, 0.025: 0.0064, 0.05 / 3: 0.0040, 0.0125: 0.0029},
    (1, 20): {0.05: 0.0101, 0.025: 0.0045, 0.05 / 3: 0.0028, 0.0125: 0.0020},
}
DRAWS = np.random.default_rng(7).normal(0.4, 1.0, 14)


def test_p_at_each_look_is_that_of_scipy():
    ours = paired_p(DRAWS)
    for n in range(FIRST_LOOK, len(DRAWS) + 1):
        assert ours[n - 1] == pytest.approx(stats.ttest_1samp(DRAWS[:n], 0).pvalue, rel=1e-10)


def test_equivalence_at_each_look_is_the_larger_of_two_one_sided_tests():
    ours = tost_p(DRAWS, 0.9)
    for n in range(FIRST_LOOK, len(DRAWS) + 1):
        above = stats.ttest_1samp(DRAWS[:n], -0.9, alternative="greater").pvalue
        below = stats.ttest_1samp(DRAWS[:n], 0.9, alternative="less").pvalue
        assert ours[n - 1] == pytest.approx(max(above, below), rel=1e-10)


def test_nothing_is_looked_at_before_the_fourth_pair():
    assert (paired_p(DRAWS)[: FIRST_LOOK - 1] == 1).all()
    assert (tost_p(DRAWS, 9.0)[: FIRST_LOOK - 1] == 1).all()


def test_a_lost_seed_moves_nothing():
    holed = np.insert(DRAWS, 5, np.nan)
    assert paired_p(holed)[4] == paired_p(holed)[5]
    np.testing.assert_allclose(np.delete(paired_p(holed), 5), paired_p(DRAWS), rtol=1e-12)


@pytest.mark.parametrize("key", INDEPENDENT)
def test_levels_of_one_look_are_those_of_an_independent_simulation(key):
    table = null_table.load(*key)
    for level, nominal in INDEPENDENT[key].items():
        # 2 % of theirs at 0.05, more where fewer paths decide, and half a unit of their last digit.
        assert table.nominal(level) == pytest.approx(nominal, rel=0.05, abs=6e-5)


@pytest.fixture(scope="module")
def fresh():
    """Paths that the shipped table has not seen."""
    return null_table.smallest_p(200_000, seed=1)


@pytest.mark.parametrize("horizon", HORIZONS)
@pytest.mark.parametrize("sides", SIDES)
def test_the_shipped_table_is_reproduced_from_fewer_paths(fresh, sides, horizon):
    table, smallest = null_table.load(sides, horizon), fresh[sides, horizon]
    seen = np.searchsorted(np.sort(smallest), table.p_values, side="right") / len(smallest)
    # 4.5 standard errors for the largest of 200 correlated deviations, and as much of the table's own.
    error = np.sqrt(LEVELS * (1 - LEVELS) * (1 / len(smallest) + 1 / null_table.PATHS)) + 1e-6
    assert (np.abs(seen - LEVELS) <= 4.5 * error).all()


@pytest.mark.parametrize("horizon", HORIZONS)
@pytest.mark.parametrize("sides", SIDES)
def test_the_table_rises_and_never_reaches_zero(sides, horizon):
    table = null_table.load(sides, horizon)
    p = np.concatenate([[0.0], np.geomspace(1e-300, 1, 5001)])
    chance = table.chance(p)
    assert (np.diff(chance) >= 0).all()
    assert chance[0] > 0
    assert chance[-1] == 1
    inner = p[1:]
    # At least the chance of one look, at most the sum over all: no dependence between looks can leave these.
    assert (chance[1:] >= inner * (1 - 1e-9)).all()
    assert (chance[1:] <= (horizon - FIRST_LOOK + 1) * inner * (1 + 1e-9)).all()
    steps = table.chance(np.array([table.p_values[0] * (1 - 1e-9), table.p_values[0]]))
    assert steps[0] == pytest.approx(steps[1], rel=1e-6)


def test_beyond_the_table_the_chance_is_not_too_small(fresh):
    """Against the tail of other paths: below 1e-4 the extrapolation must not promise more than they show."""
    table, smallest = null_table.load(2, 20), fresh[2, 20]
    p = table.p_values[0] / 3
    assert table.chance(p) * len(smallest) >= (smallest <= p).sum() - 3 * np.sqrt((smallest <= p).sum() + 1)


def test_nominal_and_chance_are_inverse():
    table = null_table.load(2, 20)
    for level in (0.05, 0.0125, 0.5):
        assert table.chance(table.nominal(level)) == pytest.approx(level, rel=1e-6)


def test_a_horizon_without_a_table_says_which_have_one():
    with pytest.raises(UsageError, match=r"horizon 16 .* choose 12 or 20"):
        null_table.load(2, 16)


def test_p_is_valid_at_every_look_together():
    d = np.random.default_rng(3).normal(0, 2.5, (40_000, 20))
    m = moments(d)
    p = running(paired_p(m), m.pairs, sides=2, horizon=20)
    assert (np.diff(p, axis=-1) <= 0).all()
    share = (p[:, -1] <= 0.05).mean()
    assert share == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 40_000))


def test_equivalence_is_valid_at_the_edge_of_the_margin_at_every_look_together():
    d = np.random.default_rng(4).normal(1.5, 1.0, (40_000, 20))
    m = moments(d)
    q = running(tost_p(m, 1.5), m.pairs, sides=1, horizon=20)
    assert (q[:, -1] <= 0.05).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 40_000)


def test_the_repeated_interval_covers_at_all_looks_together():
    rng, missed = np.random.default_rng(5), 0
    studies = 400
    for _ in range(studies):
        d = rng.normal(1.0, 1.0, 20).tolist()
        states = [contrast(d[:n], None, 20) for n in range(FIRST_LOOK, 21)]
        missed += any(not (s.ci_low <= 1.0 <= s.ci_high) for s in states)
    assert missed / studies <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / studies)


def test_the_repeated_interval_excludes_zero_where_a_single_contrast_is_decided():
    rng = np.random.default_rng(6)
    for _ in range(100):
        d = rng.normal(1.5, 1.0, 8).tolist()
        states = [contrast(d[:n], None, 20) for n in range(FIRST_LOOK, 9)]
        excluded = any(s.ci_low > 0 or s.ci_high < 0 for s in states)
        assert excluded == (states[-1].p_sequential <= 0.05)


@pytest.mark.parametrize(
    ("differences", "fault"),
    [
        ([], "no seed"),
        ([None, None], "no seed"),
        ([0.1], "one pair"),
        ([0.1, 0.2, None, 0.15], "3 pairs are fewer than 4"),
        ([0.06] * 5, "zero variance"),
        ([2.96 - 2.9, 2.95 - 2.89, 2.97 - 2.91, 2.93 - 2.87], "zero variance"),  # equal but for rounding
        ([0.1, 0.2, float("nan"), 0.3, 0.4], "not finite"),
        ([0.1, 0.2, float("inf"), 0.3, 0.4], "not finite"),
    ],
)
def test_what_cannot_be_judged_says_why(differences, fault):
    state = contrast(differences, 0.1, 20)
    assert fault in state.fault
    assert (state.p_sequential, state.p_equivalence_sequential) == (1.0, 1.0)
    assert state.ci_low is None


@pytest.mark.parametrize("value", [0.1, 0.7, 3.3])
def test_equal_differences_have_no_spread_whatever_they_are(value):
    """A sum of squares less a squared sum keeps 1e-8 of the value by rounding: no spread to test against."""
    assert (moments(np.full(20, value)).sd[1:] == 0).all()


def test_pairs_beyond_the_horizon_are_not_looked_at():
    d = np.random.default_rng(8).normal(0.3, 1, 30).tolist()
    assert contrast(d, 0.5, 20) == contrast(d[:20], 0.5, 20)
    assert contrast(d, 0.5, 20).looks == 17
