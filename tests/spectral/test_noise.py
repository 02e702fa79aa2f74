"""Edges and spikes on matrices of pure noise and of noise with planted signal."""

import math

import pytest
import torch

from lab.spectral.curves import changed
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


def test_pure_noise_has_spikes_as_rarely_as_stated():
    counts = [spikes(torch.linalg.svdvals(noise((96, 64), seed)), (96, 64)) for seed in range(200)]
    assert sum(count > 0 for count in counts) <= 10  # 1 in 100 expected, and the noise level is itself estimated


@pytest.mark.parametrize("shape", [(96, 64), (64, 96)])
def test_planted_directions_are_counted(shape):
    edge = math.sqrt(shape[0]) + math.sqrt(shape[1])
    U, V = torch.linalg.qr(noise((shape[0], 3), 5)).Q, torch.linalg.qr(noise((shape[1], 3), 6)).Q
    change = noise(shape, 7) + 2 * edge * U @ V.T
    W0 = noise(shape, 8)
    assert changed(W0 + change, W0, left_directions(W0), U_of(W0, 4), 4)["spikes"] == 3


def test_a_change_of_low_rank_without_noise_counts_its_rank_and_no_change_counts_nothing():
    W0 = noise((60, 40), 9)
    known, U = left_directions(W0), U_of(W0, 4)
    assert changed(W0 + noise((60, 2), 1) @ noise((2, 40), 2), W0, known, U, 4)["spikes"] == 2
    assert changed(W0, W0, known, U, 4)["spikes"] == 0


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
