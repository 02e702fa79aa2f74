"""The laws of what chance catches, against scipy's and against draws."""

import math

import numpy as np
import pytest
from scipy import stats

from lab.spectral.chance import SIDES, chance, variance, z_score
from lab.spectral.tail import quantile


def exceeding(drawn, limit):
    return float(np.mean(drawn > limit))


def within(nominal, draws):
    """Three and a half binomial standard errors about a nominal rate: one seeded draw in two thousand lies beyond."""
    return pytest.approx(nominal, abs=3.5 * math.sqrt(nominal / draws))


@pytest.mark.parametrize("tail", [0.5, 0.01, 1e-5])
@pytest.mark.parametrize(("k", "shape"), [(4, (64, 48)), (1, (64, 48)), (47, (64, 48)), (63, (64, 80)), (1, (7, 2))])
def test_a_rank_one_share_is_beta(k, shape, tail):
    m, n = shape
    assert quantile("left", tail, k, shape, 1.0) == pytest.approx(stats.beta.isf(tail, k / 2, (m - k) / 2), rel=1e-9)
    assert quantile("right", tail, k, shape, 1.0) == pytest.approx(stats.beta.isf(tail, k / 2, (n - k) / 2), rel=1e-9)


@pytest.mark.parametrize("tail", [0.05, 0.01, 0.001])
def test_rank_one_shares_exceed_their_quantile_as_often_as_stated(tail):
    k, shape, draws = 4, (64, 48), 400_000
    generator = np.random.default_rng(0)
    # a unit vector's first k coordinates, from normals: no Beta is drawn
    left, right = (
        (x := generator.standard_normal((draws, d), np.float32) ** 2)[:, :k].sum(1) / x.sum(1) for d in shape
    )
    drawn = {"left": left, "right": right, "core": left * right, "either": left + right - left * right}
    for side in SIDES:
        assert exceeding(drawn[side], quantile(side, tail, k, shape, 1.0)) == within(tail, draws), side


def shares_of(weights, m, k, draws, seed=0):
    """The left share of X with squared singular values `weights` on k random directions of m."""
    generator = np.random.default_rng(seed)
    frames = np.linalg.qr(generator.standard_normal((draws, m, len(weights)), np.float32)).Q
    return ((frames[:, :k] ** 2).sum(1) * (weights / weights.sum())).sum(1)


@pytest.mark.parametrize("tail", [0.01, 0.001])
@pytest.mark.parametrize(
    ("weights", "least"),
    # as parts of the nominal rate, from what `quantile` states: a peak is near it, flatter spectra are below
    [(np.array([9.0] + [1.0] * 11), 0.7), (1 / np.arange(1, 13), 0.2), (np.ones(2), 0.3), (np.ones(12), 0.0)],
)
def test_other_ranks_exceed_the_quantile_no_more_often_than_stated(weights, least, tail):
    m, k, draws = 32, 4, 40_000
    p = weights / weights.sum()
    rate = exceeding(shares_of(weights, m, k, draws), quantile("left", tail, k, (m, m), float((p**2).sum())))
    error = 3.5 * math.sqrt(tail / draws)
    assert least * tail - error < rate < tail + error


@pytest.mark.parametrize("tail", [0.01, 0.001])
@pytest.mark.parametrize("weights", [np.ones(2), np.ones(12), 1 / np.arange(1, 13)])
def test_directions_that_are_most_of_a_side_exceed_it_no_more_often_either(weights, tail):
    """Their law has its long tail below, and the shorter upper one grows towards a normal one as the rank does."""
    m, k, draws = 32, 24, 40_000
    p = weights / weights.sum()
    rate = exceeding(shares_of(weights, m, k, draws), quantile("left", tail, k, (m, m), float((p**2).sum())))
    # a tenth: of equal singular values the Beta is near, not the law
    assert rate < 1.1 * tail + 3.5 * math.sqrt(tail / draws)


@pytest.mark.parametrize("k", [3, 10, 15])
def test_core_and_either_of_two_equal_singular_values_exceed_theirs_no_more_often(k):
    m, n, draws, tail = 24, 20, 60_000, 0.01
    generator = np.random.default_rng(1)
    U, V = (np.linalg.qr(generator.standard_normal((draws, d, 2), np.float32)).Q[:, :k] for d in (m, n))
    left, right = (U**2).sum((1, 2)) / 2, (V**2).sum((1, 2)) / 2
    core = ((U @ V.transpose(0, 2, 1)) ** 2).sum((1, 2)) / 2
    for side, drawn in {"core": core, "either": left + right - core}.items():
        rate = exceeding(drawn, quantile(side, tail, k, (m, n), 0.5))
        assert 0.3 * tail < rate < 1.1 * tail + 3.5 * math.sqrt(tail / draws)


def test_quantiles_of_one_tail_are_ordered_and_stay_within_the_whole():
    for side in SIDES:
        found = [quantile(side, tail, 4, (64, 48), 0.2) for tail in (0.5, 0.1, 0.01, 1e-4, 1e-8, 1e-12)]
        assert found == sorted(found)
        assert found[0] > 0
        assert found[-1] < 1


@pytest.mark.parametrize(("shape", "k"), [((1, 5), 1), ((5, 1), 1), ((1, 1), 1), ((20, 30), 20)])
def test_a_side_that_is_spanned_whole_has_no_spread_no_score_and_no_quantile(shape, k):
    for side in SIDES:
        whole = {"left": k == shape[0], "right": k == shape[1]}
        whole |= {"core": whole["left"] and whole["right"], "either": whole["left"] or whole["right"]}
        assert (variance(side, k, shape, 1.0) == 0) is whole[side]
        assert (z_score(side, 0.5, k, shape, 1.0) is None) is whole[side]
        assert (quantile(side, 0.01, k, shape, 1.0) is None) is whole[side]


@pytest.mark.parametrize("concentration", [1 / 32, (1 + 1e-6) / 32, (1 - 1e-6) / 32])  # rounded in float32
def test_an_orthogonal_matrix_leaves_no_share_to_chance(concentration):
    assert variance("left", 4, (32, 32), concentration) == 0
    assert quantile("left", 0.01, 4, (32, 32), concentration) is None


def test_the_null_of_one_direction_of_a_very_large_matrix_has_a_spread():
    d = 100_000
    # for rank one a product of squares of unit vectors' entries, 3/(d(d + 2)) each: variance 8/d⁴ to leading order
    expected = (3 / (d * (d + 2))) ** 2 - 1 / d**4
    assert variance("core", 1, (d, d), 1.0) == pytest.approx(expected, rel=1e-9)
    assert z_score("core", 1e-8, 1, (d, d), 1.0) == pytest.approx((1e-8 - chance("core", 1, (d, d))) / expected**0.5)
