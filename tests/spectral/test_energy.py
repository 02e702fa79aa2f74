"""Energy fractions, and their chance levels against draws from the null."""

import pytest
import torch

from lab.spectral.chance import SIDES, chance, variance, z_score
from lab.spectral.energy import concentration, energies, sketched_concentration


def frames(count, m, n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(count, m, k, generator=generator, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(count, n, k, generator=generator, dtype=torch.float64)).Q
    return U, V


def matrix(S, m, n):
    X = torch.zeros(m, n, dtype=torch.float64)
    X.diagonal()[: len(S)] = torch.as_tensor(S, dtype=torch.float64)
    return X


def test_a_matrix_on_the_first_directions_has_all_its_energy_there():
    U, V = (frame[0] for frame in frames(1, 30, 20, 4))
    X = U[:, 1:2] @ V[:, 2:3].T
    found = energies(X, U, V)
    assert found.left.tolist() == pytest.approx([0, 1, 1, 1])
    assert found.right.tolist() == pytest.approx([0, 0, 1, 1])
    assert found.core.tolist() == pytest.approx([0, 0, 1, 1])
    assert found.either.tolist() == pytest.approx([0, 1, 1, 1])
    assert (found.total, found.concentration) == (pytest.approx(1), pytest.approx(1))


def test_one_sided_energy_is_left_without_core():
    U, V = (frame[0] for frame in frames(1, 30, 20, 8))
    X = U[:, :1] @ V[:, 7:8].T
    found = energies(X, U[:, :4], V[:, :4])
    assert (float(found.left[-1]), float(found.right[-1]), float(found.core[-1])) == pytest.approx((1, 0, 0), abs=1e-12)
    assert float(found.either[-1]) == pytest.approx(1)


@pytest.mark.parametrize("X", [torch.zeros(3, 3), torch.full((3, 3), torch.nan)])
def test_a_matrix_without_energy_has_no_fractions(X):
    with pytest.raises(ValueError, match="zero or not finite"):
        energies(X, torch.eye(3)[:, :1], torch.eye(3)[:, :1])


SPECTRA = {"rank one": [1.0], "four equal": [1.0] * 4, "power law": [1 / i for i in range(1, 21)], "flat": [1.0] * 20}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("m", "n", "k"), [(30, 20, 4), (20, 20, 6)])
def test_mean_and_variance_of_chance_are_those_of_haar_random_frames(m, n, k, spectrum):
    X = matrix(SPECTRA[spectrum], m, n)
    draws = 8_000
    U, V = frames(draws, m, n, k)
    total = X.square().sum()
    left, right = (U.mT @ X).square().sum((1, 2)) / total, (X @ V).square().sum((1, 2)) / total
    core = (U.mT @ X @ V).square().sum((1, 2)) / total
    drawn = {"left": left, "right": right, "core": core, "either": left + right - core}
    w = concentration(X)
    for side in SIDES:
        expected = variance(side, k, (m, n), w)
        # standard error of a mean is sqrt(variance / draws); of a variance below 10 % even for the heavy-tailed core
        assert float(drawn[side].mean()) == pytest.approx(
            chance(side, k, (m, n)), abs=4 * (expected / draws) ** 0.5 + 1e-12
        )
        assert float(drawn[side].var()) == pytest.approx(expected, rel=0.15, abs=1e-9)


def test_z_is_zero_at_chance_and_counts_standard_deviations():
    shape, k, w = (64, 48), 6, 0.2
    mean, deviation = chance("core", k, shape), variance("core", k, shape, w) ** 0.5
    assert z_score("core", mean + 3 * deviation, k, shape, w) == pytest.approx(3)


def test_a_side_that_is_spanned_whole_leaves_nothing_to_chance():
    assert chance("left", 20, (20, 30)) == 1
    assert z_score("left", 1.0, 20, (20, 30), 0.5) is None


def test_the_chance_levels_of_ten_directions_of_256_are_the_published_ones():
    # Monte Carlo at 256 x 256, k = 10: 0.0392, 0.0393, 0.00155, 0.0769
    found = [chance(side, 10, (256, 256)) for side in ("left", "right", "core", "either")]
    assert found == pytest.approx([0.0391, 0.0391, 0.00153, 0.0766], abs=1e-4)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_sketched_concentration_is_near_the_exact_one(spectrum):
    X = matrix(SPECTRA[spectrum], 60, 40)
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(300, 40, 16, generator=generator, dtype=torch.float64)
    found = sketched_concentration(X @ probes)
    assert float(found.mean()) == pytest.approx(concentration(X), rel=0.15)  # a ratio's bias, at most 2/16 here
    assert float(found.std()) / concentration(X) < 0.35
