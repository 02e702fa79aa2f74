"""What the whole procedure errs, tuning included: thousands of studies, with the functions that a study uses."""

import functools
import math

import numpy as np
import pytest

from lab.verdict.choice import Scale
from lab.verdict.simulate import GRID, Procedure, Rates, World, simulate

STUDIES = 1000
MEASURED = [(2.6, 5.0), (6.0, 5.0), (2.6, 1.0), (6.0, 1.0)]  # curvature left of the optimum, how much steeper right
EFFECT = (0.05, -0.05, 0.05, -0.05)  # two standard deviations of a paired difference
EDGE = (0.029, -0.029, 0.029, -0.029)  # the margin


def at_most(bar: float) -> float:
    """A share of STUDIES that three standard errors allow where `bar` is the truth."""
    return bar + 3 * math.sqrt(bar * (1 - bar) / STUDIES)


@functools.cache
def run(curvature: float, steeper: float, procedure: Procedure | None = None, **given: object) -> Rates:
    return simulate(World(curvature=curvature, steeper=steeper, **given), procedure or Procedure(), STUDIES)


@pytest.mark.parametrize(("curvature", "steeper"), [*MEASURED, (1.0, 5.0), (13.0, 5.0)])
def test_equal_arms_get_a_false_unqualified_verdict_in_at_most_six_of_a_hundred_studies(curvature, steeper):
    assert run(curvature, steeper).false_unqualified <= at_most(0.06)


@pytest.mark.parametrize(("curvature", "steeper"), [*MEASURED, (1.0, 5.0), (13.0, 5.0)])
def test_arms_at_the_edge_of_the_margin_are_called_equivalent_in_at_most_six_of_a_hundred_studies(curvature, steeper):
    assert run(curvature, steeper, effects=EDGE).false_equivalence <= at_most(0.06)


@pytest.mark.parametrize("shape", ["t3", "unequal"])
def test_heavy_tails_and_unequal_spreads_err_no_more(shape):
    assert run(2.6, 5.0, shape=shape).false_unqualified <= at_most(0.06)
    assert run(2.6, 5.0, shape=shape, effects=EDGE).false_equivalence <= at_most(0.06)


@pytest.mark.parametrize(("curvature", "steeper"), MEASURED)
def test_effects_of_two_standard_deviations_are_found(curvature, steeper):
    rates = run(curvature, steeper, effects=EFFECT)
    assert rates.found >= 0.95 - (at_most(0.05) - 0.05)
    assert rates.false_difference <= at_most(0.01)


def test_without_a_cliff_and_with_little_tuning_noise_they_are_found_unqualified():
    assert run(2.6, 1.0, effects=EFFECT, noise=0.01).found_unqualified >= 0.95 - (at_most(0.05) - 0.05)


@pytest.mark.parametrize(("curvature", "steeper"), MEASURED)
@pytest.mark.parametrize("noise", [0.01, 0.02])
def test_the_stated_regret_holds_for_nine_arms_in_ten(curvature, steeper, noise):
    # Arms of a study share the baseline's rates: a standard error of at most 0.01.
    assert run(curvature, steeper, noise=noise).honest >= 0.9 - 0.02


def test_half_decades_make_a_false_verdict_in_most_studies_of_equal_arms():
    """The procedure that published one: 75 to 99 % in an independent simulation."""
    assert run(2.6, 1.0, Procedure(half_decades=True, until_clear=False)).false_difference > 0.7
    assert run(6.0, 5.0, Procedure(half_decades=True, until_clear=False)).false_difference > 0.9


def test_a_difference_that_ends_its_contrast_at_once_is_seldom_clear():
    at_once = run(6.0, 5.0, Procedure(until_clear=False), effects=EFFECT)
    waited = run(6.0, 5.0, effects=EFFECT)
    assert at_once.found == pytest.approx(waited.found, abs=0.02)
    assert waited.found_unqualified > at_once.found_unqualified + 0.5


@pytest.mark.parametrize("curvature", [0.1, 0.3, 0.9])
def test_the_same_training_in_other_units_is_equivalent(curvature):
    """planted_lr: the optimum 0.30 decade away, margin 5 % of a gain of 0.086, spread and noise as measured there."""
    rates = simulate(
        World(curvature=curvature, shift=math.log10(2), sd=0.0013, noise=0.0005, margin=0.0043, effects=(0.0,)),
        Procedure(scale=Scale(flat=0.03, lost=0.015, tolerance=0.0043)),
        STUDIES,
    )
    assert rates.equivalent >= 0.95 - (at_most(0.05) - 0.05)
    assert rates.false_difference <= at_most(0.05)


def test_a_simulation_is_seeded_and_its_optima_stand_anywhere_between_two_rates():
    assert str(simulate(World(), Procedure(), 50)) == str(simulate(World(), Procedure(), 50))
    assert simulate(World(), Procedure(), 50, seed=1) != simulate(World(), Procedure(), 50, seed=2)
    assert np.diff(np.log10(GRID)) == pytest.approx([0.5] * 4, abs=0.03)
