"""Measures of matrices of any scale: what has no unit stays, what has one follows it."""

import math
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch

from lab.spectral.basis import Basis
from lab.spectral.chance import variance
from lab.spectral.curves import change_fields, norm_ratios
from lab.spectral.energy import concentration, energies, sketched_concentration
from lab.spectral.noise import gavish_donoho_threshold, left_directions, noise_level, spikes
from lab.spectral.scale import energy, scale_of
from lab.spectral.spectrum import (
    entropy_rank,
    numerical_rank,
    participation_ratio,
    singular_values,
    spectral_gap,
    spectrum_of,
    stable_rank,
    tail_error,
)
from lab.spectral.tracker import Tracker

K = 4
POWERS = [2.0**60, 2.0**-60, 2.0**-100, 2.0**-30]
DECIMALS = [1e25, 1e-25]
# float32's rounding of each entry, 6e-8 of it, once more and independently: all measures here are far from cancelling
ROUNDING = 1e-5


def gaussian(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


W, G = gaussian((48, 40)), gaussian((48, 40), 1)
BASIS = spectrum_of(gaussian((48, 40), 2), K)


def without_unit(X):
    """Every measure of one matrix that has no unit, as numbers."""
    found, S = spectrum_of(X, K), singular_values(X)
    shares = energies(X, BASIS.U, BASIS.V)
    return {
        "U": found.U,
        "V": found.V,
        "rank": found.rank,
        "numerical_rank": numerical_rank(S, (48, 40)),
        "stable_rank": stable_rank(found.S, found.energy),
        "entropy_rank": entropy_rank(S),
        "participation": participation_ratio(S),
        "tail_error": tail_error(found.S, found.energy),
        "gap": spectral_gap(found.S, 2),
        "left": shares.left,
        "right": shares.right,
        "core": shares.core,
        "concentration": concentration(X),
        "sketched": sketched_concentration(X @ gaussian((40, 16), 3)),
        "spikes": spikes(S, (48, 40)),
        "left_directions": left_directions(X),
    }


def with_unit(X):
    """Every measure in the unit of its entries, or of their squares, taken back to theirs by a square root."""
    S = singular_values(X)
    return {
        "S": spectrum_of(X, K).S.double(),
        "singular_values": S,
        "energy": math.sqrt(energy(X)),
        "decomposed energy": math.sqrt(spectrum_of(X, K).energy),
        "total": math.sqrt(energies(X, BASIS.U, BASIS.V).total),
        "noise_level": noise_level(S, (48, 40)),
        "threshold": gavish_donoho_threshold(S, (48, 40)),
    }


@pytest.mark.parametrize("scale", POWERS)
def test_a_power_of_two_changes_no_measure_by_a_bit(scale):
    for name, (was, now) in paired(without_unit(W), without_unit(W * scale)).items():
        np.testing.assert_array_equal(now, was, err_msg=name)
    for name, (was, now) in paired(with_unit(W), with_unit(W * scale)).items():
        np.testing.assert_array_equal(now, np.asarray(was) * scale, err_msg=name)


@pytest.mark.parametrize("scale", DECIMALS)
def test_any_other_factor_changes_measures_by_rounding(scale):
    for name, (was, now) in paired(without_unit(W), without_unit(W * scale)).items():
        np.testing.assert_allclose(now, was, rtol=ROUNDING, atol=ROUNDING, err_msg=name)
    for name, (was, now) in paired(with_unit(W), with_unit(W * scale)).items():
        np.testing.assert_allclose(now, np.asarray(was) * scale, rtol=ROUNDING, err_msg=name)


@pytest.mark.parametrize("scale", POWERS + DECIMALS)
def test_half_and_double_precision_have_the_ranges_of_their_own(scale):
    for dtype in (torch.bfloat16, torch.float64):
        X = W.to(dtype) * scale
        assert energy(X) == pytest.approx(float((X.double() / scale).square().sum()) * scale**2, rel=1e-6)
        assert spectrum_of(X, K).S.tolist() == pytest.approx(
            np.linalg.svd(X.double().numpy())[1][:K].tolist(), rel=1e-5
        )


@pytest.mark.parametrize("scale", [2.0**-12, 1.0, 2.0**12])  # 2^-12 leaves entries among float16's subnormals
def test_float16_is_read_exactly(scale):
    X = (W * scale).half()
    assert energy(X) == pytest.approx(float(X.double().square().sum()), rel=1e-6)
    assert spectrum_of(X, K).S.tolist() == pytest.approx(np.linalg.svd(X.double().numpy())[1][:K].tolist(), rel=1e-5)


def test_the_smallest_and_the_largest_floats_have_an_energy():
    assert energy(torch.full((3, 5), 2.0**-149)) == 15 * 2.0**-298
    assert energy(torch.full((3, 5), 2.0**127)) == 15 * 2.0**254
    assert energy(torch.full((3, 5), 2.0**-400, dtype=torch.float64)) == 15 * 2.0**-800
    assert numerical_rank(torch.tensor([2.0**-140, 0.0]), (2, 2)) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_one_entry_that_is_not_finite_is_seen_at_any_scale(value, scale):
    X = W * scale
    X[3, 4] = value
    assert not scale_of(X).sound
    assert not math.isfinite(energy(X))
    assert left_directions(X).shape == (48, 0)
    assert change_fields(X, W, left_directions(W), BASIS.U, K) == {}
    with pytest.raises(ValueError, match="not finite"):
        spectrum_of(X)
    with pytest.raises(ValueError, match="not finite"):
        energies(X, BASIS.U, BASIS.V)


def followed(engine, unit=1.0, gradients=1.0, shape=(96, 80), dtype=torch.float32):
    """Three ticks of a drifting weight in some unit, its gradients in another, and what the tracker says of each."""
    tracker = Tracker(k=K, oversample=8, engine=engine, exact_every_n_ticks=2, seed=0)
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(shape, generator=generator)
    initial, found = weight * unit, []
    for tick in range(3):
        gradient, step = (torch.randn(shape, generator=generator) for _ in range(2))
        given = {"q": (weight * unit).to(dtype)}
        found.append(
            tracker.tick(tick, given, {"q": gradient * gradients}, {"q": 0.01 * step * unit}, {"q": initial})["q"]
        )
        weight = weight + 0.01 * step
    return found


UNITS = {"energy": 2, "singular_values": 1}  # of a diagnosis and of its change; a share's total by its matrix


def compared(now, was, unit, gradients, check, path=""):
    for field in fields(was):
        here, there, name = getattr(now, field.name), getattr(was, field.name), f"{path}{field.name}"
        if is_dataclass(there):
            compared(here, there, unit, gradients, check, f"{name}.")
            continue
        power = UNITS.get(field.name, 0)
        if power:
            there = np.asarray(there, np.float64) * unit**power
        elif field.name == "total":
            there = there * (gradients if "gradient" in path else unit) ** 2
        if there is None or isinstance(there, (str, bool)):
            assert here == there, name
        else:
            check(here, there, name)


def same(here, there, name):
    np.testing.assert_array_equal(here, there, err_msg=name)


def close(here, there, name):
    # arccos, residual and the angles of a spectrum without gaps magnify the rounding of the entries
    np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("engine", ["warm", "exact"])
@pytest.mark.parametrize(("unit", "gradients"), [(2.0**60, 2.0**-60), (2.0**-60, 2.0**60), (1.0, 2.0**-75)])
def test_a_diagnosis_of_scaled_weights_and_gradients_is_the_same_to_the_bit(engine, unit, gradients):
    for now, was in zip(followed(engine, unit, gradients), followed(engine), strict=True):
        compared(now, was, unit, gradients, same)


@pytest.mark.parametrize("engine", ["warm", "exact"])
@pytest.mark.parametrize(("unit", "gradients"), [(1e25, 1e-25), (1e-25, 1e25), (1.0, 1e-23), (1.0, 1e-10)])
def test_a_diagnosis_in_any_other_unit_is_the_same_to_rounding(engine, unit, gradients):
    for now, was in zip(followed(engine, unit, gradients), followed(engine), strict=True):
        compared(now, was, unit, gradients, close)


@pytest.mark.parametrize("shape", [(80, 96), (160, 136)])
def test_wide_and_iterated_weights_too(shape):
    for now, was in zip(followed("warm", 2.0**-80, 2.0**-80, shape), followed("warm", shape=shape), strict=True):
        compared(now, was, 2.0**-80, 2.0**-80, same)


@pytest.mark.parametrize("shape", [(136, 96), (80, 600), (640, 600)])
@pytest.mark.parametrize("jump", [1e-20, 1e-3, 1e6, 1e10, 1e20])
def test_a_weight_that_jumps_in_scale_between_ticks_is_followed(jump, shape):
    tracker = Tracker(k=K, oversample=8, engine="warm", exact_every_n_ticks=9, seed=0)
    tracker.tick(1, {"q": gaussian(shape, 8)})
    after = jump * gaussian(shape, 9)
    found = tracker.tick(2, {"q": after})["q"]
    assert not found.whole  # no exact spectrum came to its help
    # a residual of 5e-3 leaves values off by its square
    assert found.singular_values[:K] == pytest.approx(torch.linalg.svdvals(after)[:K].numpy(), rel=1e-4)


def test_neither_a_huge_nor_a_tiny_weight_is_called_what_it_is_not():
    tracker = Tracker(k=K, oversample=8, engine="warm", exact_every_n_ticks=1, seed=0)
    weights = {"huge": W * 1e25, "tiny": W * 1e-25, "zero": W * 0, "beyond": torch.full((48, 40), 3e38)}
    found = tracker.tick(0, weights, dict.fromkeys(weights, G * 1e-23))
    reasons = {name: one.reason for name, one in found.items()}
    # the last has a norm of 1.3e40, which no float32 curve can hold
    assert reasons == {"huge": None, "tiny": None, "zero": "zero_matrix", "beyond": "non_finite"}
    for name in ("huge", "tiny"):
        one = spectrum_of(weights[name].double(), K, dtype=torch.float64)
        expected = float((one.U.T @ G.double()).square().sum() / G.double().square().sum())
        assert found[name].fraction("gradient", "left", K) == pytest.approx(expected, rel=1e-4)
        assert found[name].gradient.concentration == pytest.approx(concentration(G.double()), rel=1e-4)


def test_the_seeds_ratios_need_no_unit_either():
    exact = spectrum_of(W)
    was = norm_ratios(W, basis(exact, exact.S), None, G, K)
    now = norm_ratios(W * 2.0**70, basis(exact, exact.S * 2.0**70), None, G * 2.0**-70, K)
    assert now == was


def basis(found, S):
    return Basis(0, found.U, S, found.V, len(S))


def test_a_gradient_of_zero_on_a_weight_that_is_not_has_no_share():
    tracker = Tracker(k=K, oversample=8, engine="warm", exact_every_n_ticks=2, seed=0)
    for tick in range(2):  # an exact tick, and one with a sketch
        found = tracker.tick(tick, {"q": W}, {"q": torch.zeros_like(W)}, {"q": torch.zeros_like(W)})["q"]
        assert (found.gradient.total, found.rotation) == (0.0, None)
        assert found.fraction("gradient", "left", K) is None
        assert found.z("gradient", "either", K) is None


def test_an_initial_weight_that_is_not_finite_leaves_the_change_unsaid():
    tracker = Tracker(k=K, oversample=8, engine="warm", exact_every_n_ticks=1, seed=0)
    broken = W.clone()
    broken[0, 0] = math.nan
    found = tracker.tick(0, {"q": W}, initial={"q": broken})["q"]
    assert (found.reason, found.change, found.spikes, found.intruders) == (None, None, None, None)


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1)])
@pytest.mark.parametrize("engine", ["warm", "exact"])
def test_a_row_and_a_column_are_measured(shape, engine):
    tracker = Tracker(k=1, oversample=2, engine=engine, exact_every_n_ticks=2, seed=0)
    weight, gradient = gaussian(shape, 6), gaussian(shape, 7)
    for tick in range(2):
        found = tracker.tick(tick, {"q": weight}, {"q": gradient}, {"q": gradient}, {"q": weight / 2})["q"]
        assert found.fraction("gradient", "either", 1) == pytest.approx(1)
        assert found.z("gradient", "either", 1) is None  # one side is spanned whole: nothing is left to chance
        assert (found.z("gradient", "core", 1) is None) is (variance("core", 1, shape, 1.0) == 0)
    assert found.angle(1) == pytest.approx(0, abs=1e-3)


def paired(was, now):
    return {name: (as_array(was[name]), as_array(now[name])) for name in was}


def as_array(value):
    return value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
