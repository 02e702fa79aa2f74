import math

import numpy as np
import pytest
from scipy import stats

from lab.report.statistics import (
    PairedStatistics,
    bootstrap_interval,
    difference_power,
    equivalence_power,
    holm,
    mean_sd,
    paired_t,
    seeds_to_decide,
    verdict,
    wilcoxon_p,
)

A = [2.10, 2.05, 2.20, 2.11, 2.07, 2.15]
B = [2.00, 2.01, 2.05, 2.06, 1.98, 2.11]


def judge(a, b, margin=0.01, aa=None, higher=False):
    result = paired_t(a, b, margin)
    return verdict(result, result.p_value, result.p_equivalence, higher_is_better=higher, aa_p_value=aa)[0]


def test_paired_t_and_its_interval_are_scipys():
    ours, theirs = paired_t(A, B, 0.02), stats.ttest_rel(A, B)
    interval = theirs.confidence_interval(0.95)
    # the same closed form, so only rounding differs
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-9)
    assert (ours.ci_low, ours.ci_high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_the_bootstrap_and_wilcoxon_are_shown_as_scipy_finds_them():
    d = np.subtract(A, B)
    assert wilcoxon_p(d) == stats.wilcoxon(d).pvalue
    assert wilcoxon_p([0.0, 0.0]) is None
    theirs = stats.bootstrap((d,), np.mean, method="percentile", n_resamples=20000, rng=1).confidence_interval
    assert bootstrap_interval(d[:4]) is not None
    assert {bootstrap_interval(d[:pairs]) for pairs in range(4)} == {None}
    # Monte Carlo error of a 2.5 % quantile at 2,000 resamples is about 2 % of the interval
    assert bootstrap_interval(d) == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_tost_is_the_larger_of_two_one_sided_tests():
    d = np.subtract(A, B)
    for margin in (0.02, 0.08, 0.3):
        lower = stats.ttest_1samp(d, -margin, alternative="greater").pvalue
        upper = stats.ttest_1samp(d, margin, alternative="less").pvalue
        assert paired_t(A, B, margin).p_equivalence == pytest.approx(max(lower, upper), rel=1e-9)


def test_holm_is_its_textbook_example():
    # Holm 1979: sorted p times (m, m − 1, …), made monotone
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([None, 0.2, None]) == [None, 0.2, None]
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def test_an_aa_study_calls_a_difference_in_at_most_six_and_a_half_percent():
    random, called = np.random.default_rng(1), 0
    for _ in range(1000):
        base = random.normal(2.0, 0.05, 6)
        arms = [paired_t(base + random.normal(0, 0.02, 6), base + random.normal(0, 0.02, 6), 0.001) for _ in range(4)]
        adjusted = holm([arm.p_value for arm in arms])
        verdicts = [
            verdict(x, p, x.p_equivalence, higher_is_better=False)[0] for x, p in zip(arms, adjusted, strict=True)
        ]
        called += any(v in ("a_better", "b_better") for v in verdicts)
    assert called <= 65


def test_arms_at_the_edge_of_the_margin_are_called_equivalent_in_at_most_six_and_a_half_percent_of_studies():
    random, called, unadjusted = np.random.default_rng(4), 0, 0
    edge = 0.03  # 1.5 standard deviations of a difference: every true difference is as large as the margin
    for _ in range(1000):
        base = random.normal(2.0, 0.05, 6)
        arms = [paired_t(base + edge + random.normal(0, 0.02, 6), base, edge) for _ in range(4)]
        adjusted = holm([arm.p_equivalence for arm in arms])
        ends = [verdict(x, None, q, higher_is_better=False)[0] for x, q in zip(arms, adjusted, strict=True)]
        called += "equivalent" in ends
        unadjusted += any(arm.p_equivalence < 0.05 for arm in arms)
    # 5 % is the level, and 1,000 studies have a standard error of 0.7 %; without the family it is near 1 − 0.95⁴
    assert called <= 65
    assert unadjusted > 130


def test_an_effect_of_three_standard_deviations_is_found_at_six_seeds():
    random, found = np.random.default_rng(2), 0
    for _ in range(1000):
        base = random.normal(2.0, 0.05, 6)
        effects = [-0.06, 0.0, 0.0, 0.0]  # three other contrasts without effect: the full price of Holm is paid
        arms = [paired_t(base + effect + random.normal(0, 0.02, 6), base, 0.001) for effect in effects]
        adjusted = holm([arm.p_value for arm in arms])
        found += verdict(arms[0], adjusted[0], arms[0].p_equivalence, higher_is_better=False)[0] == "a_better"
    assert found >= 950


def test_a_lower_loss_wins_and_a_higher_accuracy_wins():
    assert judge(A, B) == "b_better"
    assert judge(B, A) == "a_better"
    assert judge(A, B, higher=True) == "a_better"


def test_equivalent_takes_precedence_over_better():
    result = paired_t(A, B, 0.5)
    assert result.p_value < 0.05
    assert verdict(result, result.p_value, result.p_equivalence, higher_is_better=False)[0] == "equivalent"


def test_a_verdict_is_withheld_below_four_pairs_and_without_a_quiet_aa():
    assert judge(A[:3], B[:3]) == "withheld"
    assert judge(A, B, aa=0.005) == "withheld"
    assert judge(A, B, aa=0.02) == "b_better"


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        ([2.0] * 6, [2.0] * 6, "zero variance"),
        ([2.3] * 6, [2.2] * 6, "zero variance"),
        ([2.0, math.nan, 2.0, 2.0], [1.0, 1.1, 1.2, 1.0], "not finite"),
        ([2.0], [1.0], "one pair"),
        ([], [], "no seed"),
    ],
)
def test_what_cannot_be_judged_is_withheld_with_its_reason(a, b, word):
    result = paired_t(a, b, 0.1)
    assert result.p_value is None
    name, reason = verdict(result, None, None, higher_is_better=False)
    assert name == "withheld"
    assert word in reason


def test_significance_lost_to_holm_is_inconclusive_and_says_so():
    name, reason = verdict(paired_t(A, B, 0.01), 0.2, 1.0, higher_is_better=False)
    assert name == "inconclusive"
    assert "Holm" in reason


def test_power_is_what_a_simulation_finds():
    random, n = np.random.default_rng(3), np.array([8])
    draws = random.normal(0.8, 1.0, (20000, 8))
    found = (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()
    # binomial standard error of 20,000 draws is 0.0035
    assert difference_power(0.8, 1.0, n)[0] == pytest.approx(found, abs=0.012)


@pytest.mark.parametrize("pairs", [4, 6, 12])
def test_the_power_of_tost_is_what_a_simulation_finds(pairs):
    random = np.random.default_rng(pairs)
    for mean, margin in ((0.0, 1.0), (0.3, 1.0), (1.0, 1.0), (0.0, 3.0)):
        draws = random.normal(mean, 1.0, (20000, pairs))
        half = stats.t.ppf(0.95, pairs - 1) * draws.std(axis=1, ddof=1) / math.sqrt(pairs)
        inside = (np.abs(draws.mean(axis=1)) + half < margin).mean()
        # four binomial standard errors of 20,000 draws; a shifted t says 0.32 for 0.41 at six pairs
        assert equivalence_power(mean, 1 / math.sqrt(pairs), pairs - 1, margin) == pytest.approx(inside, abs=0.0142)


@pytest.mark.parametrize(
    ("cv", "error", "freedom", "published"),
    [  # the R package PowerTOST: `power.TOST` with its default ratio of 0.95 and limits of 0.80 to 1.25
        (0.20, math.sqrt(2 / 20), 18, 0.834680),  # 2x2 crossover of 20, its README
        (0.30, math.sqrt(2 / 40), 38, 0.8158453),  # 2x2 crossover of 40, manual of exppower.noninf
        (0.35, math.sqrt(1 / 52 + 1 / 49), 99, 0.8011186),  # parallel groups of 52 and 49, its README
    ],
)
def test_the_power_of_tost_is_the_published_one(cv, error, freedom, published):
    sd = math.sqrt(math.log(1 + cv**2))  # of the logarithm, whose limits ±log 1.25 are symmetric
    power = equivalence_power(math.log(0.95), sd * error, freedom, math.log(1.25))
    assert power == pytest.approx(published, abs=5e-7)  # the digits that are printed


def test_the_power_of_tost_runs_from_nothing_to_certainty():
    n = np.array([4, 1000])
    assert equivalence_power(0.0, 1 / np.sqrt(n), n - 1, 1e-6).max() < 1e-12
    assert equivalence_power(0.0, 1 / np.sqrt(n), n - 1, 1e6) == pytest.approx([1.0, 1.0], abs=1e-12)
    # at the margin's edge it is the level where the other edge is far: the definition of the test
    assert equivalence_power(50.0, 1 / np.sqrt(n), n - 1, 50.0, 0.01) == pytest.approx([0.01, 0.01], abs=1e-9)


def test_the_number_of_seeds_to_decide_is_the_first_with_the_power():
    n = seeds_to_decide(0.5, 1.0, None)
    assert n == 34  # Cohen 1988, paired d = 0.5, two-sided 5 %, power 80 %
    assert seeds_to_decide(0.0, 1.0, 0.5) < 50  # an absent effect is decided by equivalence
    assert seeds_to_decide(0.5, 1.0, 0.5) == 34  # an effect as large as the margin can only be found different
    assert seeds_to_decide(0.01, 1.0, None) is None
    assert seeds_to_decide(100.0, 1.0, None) == 4


def test_a_deviation_of_one_value_is_missing_not_zero():
    assert mean_sd([3.0]) == (3.0, None)
    assert mean_sd([]) == (None, None)
    assert mean_sd([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))


def test_values_of_different_length_are_no_pairs():
    with pytest.raises(ValueError, match="pair"):
        paired_t([1.0, 2.0], [1.0], None)
    assert PairedStatistics(pairs=0).mean is None


def test_a_pair_that_no_family_adjusts_is_undecided_in_words():
    # A/A pairs whose p lies between the level that withholds and the one that judges, outside any margin
    a, b = [2.0, 2.0, 2.0, 2.0], [2.01, 2.03, 2.05, 2.04]
    for margin in (None, 0.001):
        result = paired_t(a, b, margin)
        assert 0.01 < result.p_value < 0.05
        name, reason = verdict(result, None, result.p_equivalence, higher_is_better=False, aa_p_value=result.p_value)
        assert name == "inconclusive"
        assert f"p = {result.p_value:.2g}" in reason
        assert "Holm" not in reason  # nothing was adjusted
