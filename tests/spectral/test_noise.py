"""Edges and spikes on matrices of pure noise and of noise with planted signal."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from lab.spectral.curves import change_fields
from lab.spectral.noise import (
    gavish_donoho_threshold,
    intruders,
    left_directions,
    marchenko_pastur_edge,
    noise_level,
    spikes,
)


def noise(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_edge_is_where_noise_ends():
    top = torch.linalg.svdvals(2 * noise((600, 300), 0))[0]
    assert float(top) == pytest.approx(marchenko_pastur_edge((600, 300), 2.0), rel=0.02)


def test_the_noise_level_survives_a_signal():
    W = 0.5 * noise((300, 200), 1) + 40 * noise((300, 3), 2) @ noise((3, 200), 3)
    assert noise_level(torch.linalg.svdvals(W), (300, 200)) == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.25, 0.1])
def test_the_hard_threshold_is_the_published_one(beta):
    found = gavish_donoho_threshold(torch.ones(100), (int(100 / beta), 100))
    # the authors' cubic, which they give as accurate to about 0.02; 2.858 for square is theirs too
    assert found == pytest.approx(0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43, abs=0.02)
    assert beta < 1 or found == pytest.approx(2.858, abs=1e-3)


@pytest.mark.parametrize(("shape", "draws"), [((96, 64), 3000), ((24, 48), 6000), ((33, 33), 6000), ((9, 9), 6000)])
def test_pure_noise_has_a_spike_in_one_matrix_of_a_hundred(shape, draws):
    generator = torch.Generator().manual_seed(0)
    values = torch.linalg.svdvals(torch.randn(draws, *shape, generator=generator))
    rate = sum(spikes(S, shape) > 0 for S in values) / draws
    # three and a half binomial standard errors, and the fifth by which the fit may be off at one shape
    assert rate == pytest.approx(0.01, abs=3.5 * math.sqrt(0.01 / draws) + 0.002)


@pytest.mark.parametrize(("shape", "draws"), [((256, 256), 4000), ((1024, 256), 1500)])
def test_pure_noise_of_larger_matrices_has_a_spike_as_rarely(shape, draws):
    # A Gaussian matrix has the singular values of a bidiagonal one of chi variables (Dumitriu and Edelman 2002). The
    # largest and the two in the middle decide: a spectrum of four that has these has the same median.
    m, n = shape
    generator = np.random.default_rng(3)
    a = np.sqrt(generator.chisquare(np.arange(m, m - n, -1), (draws, n)))
    b = np.sqrt(generator.chisquare(np.arange(n - 1, 0, -1), (draws, n - 1)))
    diagonal = a**2
    diagonal[:, 1:] += b**2
    found = 0
    for on, off in zip(diagonal, a[:, :-1] * b, strict=True):
        top = scipy.linalg.eigvalsh_tridiagonal(on, off, select="i", select_range=(n - 1, n - 1))[0]
        middle = scipy.linalg.eigvalsh_tridiagonal(on, off, select="i", select_range=(n // 2 - 1, n // 2))
        S = torch.tensor([top, middle[1], middle[0], 0.0], dtype=torch.float64).sqrt()
        found += spikes(S, shape) > 0
    assert found / draws == pytest.approx(0.01, abs=3.5 * math.sqrt(0.01 / draws) + 0.002)


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1), (2, 9), (9, 2)])
def test_one_or_two_values_have_nothing_to_stand_out_from(shape):
    assert spikes(torch.linalg.svdvals(noise(shape, 0)), shape) == 0


@pytest.mark.parametrize("shape", [(96, 64), (64, 96)])
def test_planted_directions_are_counted(shape):
    edge = math.sqrt(shape[0]) + math.sqrt(shape[1])
    U, V = torch.linalg.qr(noise((shape[0], 3), 5)).Q, torch.linalg.qr(noise((shape[1], 3), 6)).Q
    change = noise(shape, 7) + 2 * edge * U @ V.T
    W0 = noise(shape, 8)
    assert change_fields(W0 + change, W0, left_directions(W0), U_of(W0, 4), 4)["spikes"] == 3


def test_a_change_of_low_rank_without_noise_counts_its_rank_and_no_change_counts_nothing():
    W0 = noise((60, 40), 9)
    known, U = left_directions(W0), U_of(W0, 4)
    assert change_fields(W0 + noise((60, 2), 1) @ noise((2, 40), 2), W0, known, U, 4)["spikes"] == 2
    assert change_fields(W0, W0, known, U, 4)["spikes"] == 0


def U_of(weight, k):
    return torch.linalg.svd(weight, full_matrices=False)[0][:, :k]


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (48, 48)])
def test_intruders_are_new_directions_and_scaled_old_ones_are_not(shape):
    U, S, Vh = torch.linalg.svd(noise(shape, 10), full_matrices=False)
    W0 = U[:, :20] @ torch.diag(S[:20]) @ Vh[:20]
    known = left_directions(W0)
    assert known.shape == (shape[0], 20)
    torch.testing.assert_close(known @ known.mT, U[:, :20] @ U[:, :20].mT, atol=1e-5, rtol=0)  # float32's rounding
    assert intruders(U_of(W0 + 5 * S[0] * U[:, 3:4] @ Vh[3:4], 5), known) == 0
    assert intruders(U_of(W0 + 5 * S[0] * U[:, 30:31] @ Vh[30:31], 5), known) == 1
    assert intruders(U_of(W0, 5), left_directions(torch.zeros(shape))) == 5
