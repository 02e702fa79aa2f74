from itertools import pairwise

import pytest
import torch
from torch import Generator

from lab.spectral import decomposition
from lab.spectral.decomposition import MAX_PASSES, decompose, exact_basis, triples


def matrix(shape, spectrum, seed=0):
    generator = Generator().manual_seed(seed)
    k = len(spectrum)
    U = torch.linalg.qr(torch.randn(shape[0], k, generator=generator)).Q
    V = torch.linalg.qr(torch.randn(shape[1], k, generator=generator)).Q
    return (U * spectrum) @ V.T


def generator(seed=0):
    return Generator().manual_seed(seed)


SHAPES = [(160, 160), (240, 120), (120, 240)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_exact_triples_reach_float32_accuracy_to_the_last(shape):
    spectrum = torch.logspace(0, -4, 120)
    M = matrix(shape, spectrum)
    found = triples(M, exact_basis(M), torch.arange(120))
    # W itself is only known to 6e-8 of its greatest singular value; torch's float32 SVD errs by ten times that
    assert torch.allclose(found.S, spectrum, atol=5e-7)
    assert float(((found.U * found.S) @ found.Vh - M).abs().max()) < 1e-6
    eye = torch.eye(120)
    assert torch.allclose(found.U.T @ found.U, eye, atol=2e-6)
    assert torch.allclose(found.Vh @ found.Vh.T, eye, atol=2e-6)


@pytest.mark.parametrize("shape", [(400, 400), (500, 300), (300, 500)])
def test_a_sketch_of_a_decaying_spectrum_captures_what_the_best_does(shape):
    spectrum = torch.arange(1, 301) ** -0.7
    M = matrix(shape, spectrum)
    found = decompose(M, 16, "randomised", generator())
    best = float((spectrum[:16] ** 2).sum() / (spectrum**2).sum())
    assert not found.exact
    assert 1 <= found.passes <= MAX_PASSES
    assert best * (1 - 1e-3) <= found.captured_energy <= best * (1 + 1e-6)  # the stopping rule's own promise
    left = M - (found.U * found.S) @ found.Vh
    assert float(left.square().sum() / M.square().sum()) == pytest.approx(1 - found.captured_energy, abs=1e-5)
    assert torch.allclose(found.U.T @ found.U, torch.eye(16), atol=1e-5)
    assert torch.allclose(found.Vh @ found.Vh.T, torch.eye(16), atol=1e-5)


def test_a_sketch_that_does_not_settle_goes_exact_and_says_so():
    M = torch.randn(600, 600, generator=generator(1))  # no decay: each pass still gains
    found = decompose(M, 8, "randomised", generator())
    assert found.exact
    assert found.passes == MAX_PASSES
    S = torch.linalg.svdvals(M)
    assert found.captured_energy == pytest.approx(float((S[:8] ** 2).sum() / (S**2).sum()), rel=1e-5)


def test_the_last_pass_is_the_first_that_gained_too_little(monkeypatch):
    gains = []
    measure = decomposition._energy_in
    monkeypatch.setattr(decomposition, "_energy_in", lambda *args: gains.append(measure(*args)) or gains[-1])
    found = decompose(matrix((400, 400), torch.arange(1, 401) ** -0.5), 16, "randomised", generator())
    relative = [(b - a) / b for a, b in pairwise(gains)]
    assert found.passes == len(relative)
    assert all(gain > 1e-3 for gain in relative[:-1])
    assert relative[-1] <= 1e-3


def test_a_rank_too_wide_to_sketch_is_decomposed_at_once():
    found = decompose(matrix((100, 100), torch.arange(1, 101) ** -1.0), 40, "randomised", generator())
    assert found.exact
    assert found.passes == 0


@pytest.mark.parametrize("algorithm", ["randomised", "exact"])
@pytest.mark.parametrize("shape", [(120, 120), (160, 120), (120, 160)])
def test_zero_and_rank_deficient_matrices_have_orthonormal_frames(shape, algorithm):
    for M, true in ((torch.zeros(shape), 0), (matrix(shape, torch.tensor([3.0, 2.0])), 2)):
        found = decompose(M, 6, algorithm, generator())
        assert torch.allclose(found.U.T @ found.U, torch.eye(6), atol=1e-5)
        assert torch.allclose(found.Vh @ found.Vh.T, torch.eye(6), atol=1e-5)
        assert torch.allclose(found.S, torch.tensor([3.0, 2.0, 0, 0, 0, 0]) if true else torch.zeros(6), atol=1e-5)
        assert found.captured_energy == pytest.approx(1.0 if true else 0.0, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_tiny_and_huge_matrices_neither_underflow_nor_overflow(scale):
    M = matrix((300, 300), torch.arange(1, 301) ** -1.0)
    found, plain = decompose(scale * M, 8, "randomised", generator()), decompose(M, 8, "randomised", generator())
    assert found.captured_energy == pytest.approx(plain.captured_energy, rel=1e-4)
    assert torch.allclose(found.S / scale, plain.S, rtol=1e-4)


def test_the_sketch_depends_on_its_generator_alone():
    M = matrix((300, 300), torch.arange(1, 301) ** -1.0)
    torch.manual_seed(0)
    one = decompose(M, 8, "randomised", generator(5))
    torch.manual_seed(1)
    two = decompose(M, 8, "randomised", generator(5))
    assert torch.equal(one.U, two.U)
    assert torch.equal(one.Vh, two.Vh)
