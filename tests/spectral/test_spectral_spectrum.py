"""Measures of one spectrum, on spectra constructed to have known answers."""

import math

import numpy as np
import pytest
import torch

from lab.spectral.scale import energy
from lab.spectral.spectrum import (
    entropy_rank,
    participation_ratio,
    singular_values,
    snap_to_gap,
    spectral_gap,
    spectrum_of,
    stable_rank,
    tail_error,
)


def with_spectrum(S, shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    k = len(S)
    U = torch.linalg.qr(torch.randn(shape[0], k, generator=generator, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(shape[1], k, generator=generator, dtype=torch.float64)).Q
    return (U @ torch.diag(torch.as_tensor(S, dtype=torch.float64)) @ V.T).to(dtype)


SHAPES = [(60, 60), (90, 60), (60, 90)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_decomposition_finds_the_planted_values_and_reconstructs(shape):
    S = np.linspace(3, 0.5, 60)
    W = with_spectrum(S, shape)
    found = spectrum_of(W, k=7)
    assert found.S.numpy() == pytest.approx(S[:7], rel=1e-5)
    assert found.energy == pytest.approx(float((S**2).sum()), rel=1e-6)
    whole = spectrum_of(W, dtype=torch.float64)
    assert torch.allclose(whole.U @ torch.diag(whole.S) @ whole.V.T, W.double(), atol=1e-12)
    assert whole.whole
    assert not found.whole


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_dtype_goes_in(dtype):
    W = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert spectrum_of(W, k=3).S.tolist() == pytest.approx(np.linalg.svd(W.double().numpy())[1][:3].tolist(), rel=1e-5)


def test_signs_are_fixed_by_the_largest_left_entry():
    U = spectrum_of(torch.randn(30, 20, generator=torch.Generator().manual_seed(1))).U
    assert bool((U.gather(0, U.abs().argmax(0, keepdim=True)) > 0).all())


def test_a_zero_matrix_gives_a_reason_and_no_number():
    found = spectrum_of(torch.zeros(8, 5), k=2)
    assert (found.reason, found.rank) == ("zero_matrix", 0)
    assert stable_rank(found.S, found.energy) is None
    assert entropy_rank(found.S) is None
    assert participation_ratio(found.S) is None
    assert spectral_gap(found.S, 1) is None
    assert tail_error(found.S, found.energy).tolist() == [0.0, 0.0]


def test_a_matrix_of_lower_rank_says_how_many_directions_mean_something():
    found = spectrum_of(with_spectrum([2.0, 1.0, 0.5], (40, 30)), k=6)
    assert (found.rank, found.reason) == (3, "rank_deficient")


@pytest.mark.parametrize("k", [0, 31])
def test_k_outside_the_matrix_is_refused_with_its_shape(k):
    with pytest.raises(ValueError, match=f"k={k} directions of a 40x30 matrix"):
        spectrum_of(torch.ones(40, 30), k=k)


def test_entries_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        spectrum_of(torch.tensor([[1.0, math.inf]]))


def test_ranks_of_flat_and_of_one_value_spectra_are_the_dimension_and_one():
    flat, one = torch.ones(12), torch.tensor([3.0] + [0.0] * 11)
    for measure in (entropy_rank, participation_ratio, lambda S: stable_rank(S, float(S.square().sum()))):
        assert measure(flat) == pytest.approx(12, rel=1e-6)
        assert measure(one) == pytest.approx(1, rel=1e-6)


def test_ranks_of_a_known_spectrum():
    S = torch.tensor([2.0, 1.0])  # shares 0.8 and 0.2
    assert stable_rank(S, 5.0) == pytest.approx(1.25)
    assert entropy_rank(S) == pytest.approx(math.exp(-0.8 * math.log(0.8) - 0.2 * math.log(0.2)))
    assert participation_ratio(S) == pytest.approx(25 / 17)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_tail_error_needs_no_reconstruction(shape):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    found = spectrum_of(W)
    errors = tail_error(found.S, found.energy)
    for r in (1, 10, 30):
        kept = found.U[:, :r] @ torch.diag(found.S[:r]) @ found.V[:, :r].T
        assert float(errors[r - 1]) == pytest.approx(float((W - kept).norm() / W.norm()), abs=1e-5)
    assert float(errors[-1]) < 1e-3  # float32 singular values leave a floor near 3e-4


def test_the_gram_spectrum_is_accurate_four_decades_down():
    S = np.geomspace(1, 1e-4, 50)
    found = singular_values(with_spectrum(S, (80, 50), dtype=torch.float64))
    assert found.numpy() == pytest.approx(S, rel=1e-6)


def test_the_gap_is_where_it_was_planted():
    S = torch.tensor([5.0, 4.9, 4.8, 2.0, 1.9, 1.8])
    assert spectral_gap(S, 3) == pytest.approx(2.8 / 5)
    assert snap_to_gap(S, 1, 5, least=0.1) == 3
    assert snap_to_gap(S, 4, 5, least=0.1) is None
    assert spectral_gap(S, 6) is None


def test_the_energy_of_a_matrix_with_a_nan_is_not_finite():
    W = torch.ones(4, 4)
    assert energy(W) == 16
    W[1, 2] = math.nan
    assert not math.isfinite(energy(W))
