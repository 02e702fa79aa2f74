"""Angles between subspaces that were turned by known angles."""

import math

import pytest
import scipy.linalg
import torch

from lab.spectral.spectrum import spectrum_of
from lab.spectral.subspace import (
    angle_curve,
    overlap,
    overlap_curve,
    predicted_rotation,
    principal_angles,
    subspace_angle,
)


def turned(d, angles, seed=0):
    """Two float32 bases of len(angles) columns, the i-th turned by angles[i] towards a direction of its own."""
    k = len(angles)
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(d, 2 * k, generator=generator, dtype=torch.float64)).Q
    theta = torch.as_tensor(angles, dtype=torch.float64)
    return Q[:, :k].float(), (Q[:, :k] * theta.cos() + Q[:, k:] * theta.sin()).float()


@pytest.mark.parametrize("d", [64, 1024])
@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-5, 1e-3, 0.1, 1.0, 1.5, math.pi / 2])
def test_angles_are_accurate_to_a_millionth_of_a_radian_in_float32(angle, d):
    before, after = turned(d, [angle, angle / 2, angle / 4])
    found = principal_angles(before, after)
    # entries of a float32 basis are rounded at 6e-8 of a length of 1/sqrt(d)
    assert found.tolist() == pytest.approx([angle / 4, angle / 2, angle], abs=1e-6)
    assert subspace_angle(before, after) == float(found[-1])


def test_arccos_would_not_be_accurate():
    before, after = turned(256, [1e-5] * 10)
    cosine = torch.linalg.svdvals(before.T @ after).min().clamp(-1, 1)
    assert abs(float(torch.acos(cosine)) - 1e-5) > 1e-4  # the reason for atan2


def test_angles_agree_with_scipy_on_random_subspaces():
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.linalg.qr(torch.randn(80, 7, generator=generator)).Q for _ in range(2))
    reference = scipy.linalg.subspace_angles(A.double().numpy(), B.double().numpy())[::-1]
    assert principal_angles(A, B).tolist() == pytest.approx(list(reference), abs=1e-6)


def test_curves_hold_what_each_leading_part_gives_alone():
    generator = torch.Generator().manual_seed(1)
    before = torch.linalg.qr(torch.randn(3, 90, 12, generator=generator)).Q
    after = torch.linalg.qr(before + 0.2 * torch.randn(3, 90, 12, generator=generator) / 9).Q
    after[2] = torch.linalg.qr(torch.randn(90, 12, generator=generator)).Q  # one layer that is unrelated
    counts = [1, 2, 5, 12]
    angles, overlaps = angle_curve(before, after, counts), overlap_curve(before, after)
    for layer in range(3):
        for place, j in enumerate(counts):
            alone = subspace_angle(before[layer, :, :j], after[layer, :, :j])
            assert float(angles[layer, place]) == pytest.approx(alone, abs=2e-6)
            expected = overlap(before[layer, :, :j], after[layer, :, :j])
            assert float(overlaps[layer, j - 1]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("angle", [0.0, 1e-5, 1e-3, 0.3, 1.2])
def test_the_angle_curve_is_as_accurate_as_the_angles(angle):
    before, after = turned(512, [angle] * 4)
    assert angle_curve(before, after, [4]).tolist() == pytest.approx([angle], abs=1e-6)


def test_unrelated_subspaces_overlap_by_chance():
    generator = torch.Generator().manual_seed(2)
    found = [
        overlap(*(torch.linalg.qr(torch.randn(50, 5, generator=generator)).Q for _ in range(2))) for _ in range(200)
    ]
    assert sum(found) / 200 == pytest.approx(5 / 50, abs=0.01)  # standard error 0.003


def test_the_predicted_rotation_is_the_angle_of_a_small_step():
    generator = torch.Generator().manual_seed(3)
    U = torch.linalg.qr(torch.randn(60, 4, generator=generator, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(50, 4, generator=generator, dtype=torch.float64)).Q
    W = U @ torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0], dtype=torch.float64)) @ V.T
    step = 1e-5 * torch.randn(60, 50, generator=generator, dtype=torch.float64)
    left, right = predicted_rotation(step, U, torch.tensor([5.0, 4, 3, 2]), V)
    after = spectrum_of(W + step, k=4, dtype=torch.float64)
    assert left == pytest.approx(subspace_angle(U, after.U), rel=1e-3)  # first order: errors of 1e-5 relative
    assert right == pytest.approx(subspace_angle(V, after.V), rel=1e-3)


def test_a_direction_of_value_zero_has_no_rotation():
    with pytest.raises(ValueError, match="direction 2 has singular value 0"):
        predicted_rotation(torch.ones(3, 3), torch.eye(3)[:, :2], torch.tensor([1.0, 0.0]), torch.eye(3)[:, :2])
