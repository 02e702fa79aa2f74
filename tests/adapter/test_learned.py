"""Metrics of what was learned, on matrices built to have known ones, and against dense float64 SVDs."""

import math

import pytest
import torch

from lab.spectral.weight_change import (
    change_measures,
    energy_shares,
    first_step,
    intruder_cosines,
    leading_left,
    thin_svd,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def frame(n, k, seed=0):
    return torch.linalg.qr(draw(n, k, seed=seed)).Q


def decaying(out, inner, power=0.5, seed=0):
    """A base weight with σᵢ = i^−power, and its singular vectors."""
    m = min(out, inner)
    U, V = frame(out, m, seed), frame(inner, m, seed + 1)
    return (U * torch.arange(1, m + 1) ** -power) @ V.T, U, V


@pytest.mark.parametrize("shape", [(40, 40), (64, 24), (24, 64)])
@pytest.mark.parametrize("p", [1, 6, 30])
def test_the_thin_svd_is_the_dense_one(shape, p):
    L, R = draw(shape[0], p), draw(p, shape[1], seed=1)
    change = thin_svd(L, R)
    dense = torch.linalg.svdvals(L.double() @ R.double())
    count = min(p, *shape)  # beyond it the dense one has zeros
    torch.testing.assert_close(change.S[:count], dense[:count], rtol=1e-10, atol=1e-12)  # both float64
    torch.testing.assert_close((change.U * change.S) @ change.Vh, L.double() @ R.double(), rtol=1e-10, atol=1e-10)
    for Q in (change.U, change.Vh.T):
        torch.testing.assert_close(Q.T @ Q, torch.eye(Q.shape[1], dtype=Q.dtype), rtol=0, atol=1e-12)


def test_an_offset_cancels_to_the_change_and_not_to_rounding():
    # B and B₀ differ by 1e-4 of themselves: a float32 product of each would leave 1e-3 of the difference as noise
    B0, A = draw(40, 4), draw(4, 30, seed=1)
    B = B0 + 1e-4 * draw(40, 4, seed=2)
    change = thin_svd(torch.cat([2 * B, -2 * B0], 1), torch.cat([A, A]))
    dense = torch.linalg.svdvals(2 * (B.double() - B0.double()) @ A.double())
    torch.testing.assert_close(change.S[:4], dense[:4], rtol=1e-8, atol=0)
    assert float(change.S[4:].max()) < 1e-10 * float(change.S[0])


def layer(L, R, weight, U, V, rank=4, k=10):
    return change_measures(L, R, weight, U, V, rank=rank, k=k, epsilon=0.5)


def test_ranks_and_use_of_a_change_of_equal_directions():
    weight, U, V = decaying(40, 40)
    found = layer(3.0 * frame(40, 4, 5), frame(40, 4, 6).T, weight, U, V, rank=8)
    assert found["effective_rank"] == pytest.approx(4, rel=1e-5)  # float32 factors
    assert found["stable_rank"] == pytest.approx(4, rel=1e-5)
    assert found["utilisation"] == pytest.approx(0.5, rel=1e-5)
    assert found["delta_norm"] == pytest.approx(6, rel=1e-5)  # √(4 · 3²)
    assert found["relative_norm"] == pytest.approx(6 / float(weight.norm()), rel=1e-5)


def test_ranks_of_an_uneven_change():
    # σ = 2, 1, 1: p = ½, ¼, ¼, so exp of the entropy is 2^1.5; Σσ²/σ₁² = 6/4
    weight, U, V = decaying(40, 40)
    found = layer(frame(40, 3, 5) * torch.tensor([2.0, 1.0, 1.0]), frame(40, 3, 6).T, weight, U, V)
    assert found["effective_rank"] == pytest.approx(2**1.5, rel=1e-5)
    assert found["stable_rank"] == pytest.approx(1.5, rel=1e-5)


def test_energy_inside_the_bases_leading_subspace():
    # σ² = 9 on (u₁, v₁₂), 4 on (u₁₁, v₂), 1 on (u₂, v₃), 2 on (u₂₀, v₃₀), with the subspace the first 10
    _, U, V = decaying(40, 40)
    sigma = torch.tensor([3.0, 2.0, 1.0, math.sqrt(2)])
    change = thin_svd(U[:, [0, 10, 1, 19]] * sigma, V[:, [11, 1, 2, 29]].T)
    found = energy_shares(change, U[:, :10], V[:, :10])
    assert found["left"].share == pytest.approx(10 / 16, rel=1e-5)
    assert found["right"].share == pytest.approx(5 / 16, rel=1e-5)
    assert found["core"].share == pytest.approx(1 / 16, rel=1e-5)
    assert (found["left"].chance, found["right"].chance, found["core"].chance) == (0.25, 0.25, 0.0625)


def test_random_changes_have_the_energy_and_the_spread_that_chance_says():
    left, right = frame(32, 8, 1), frame(48, 8, 2)
    sides = {"left": [], "right": [], "core": []}
    for seed in range(400):
        change = thin_svd(draw(32, 3, seed=10 + seed), draw(3, 48, seed=1000 + seed))
        for side, part in energy_shares(change, left, right).items():
            sides[side].append(part.z)
    for side, scores in sides.items():
        z = torch.tensor(scores)
        assert abs(z.mean()) < 4 / math.sqrt(400), side  # four standard errors of a mean
        assert 0.8 < z.std() < 1.2, side  # a standard deviation of 400 is good to about 4 %; the core's tail is heavier


def test_a_planted_intruder_is_counted_and_an_aligned_change_is_not():
    weight, U, V = decaying(64, 48)
    outside = frame(64, 64, 9)
    new = outside - U @ (U.T @ outside)  # left directions the base does not have (64 > 48)
    new = torch.linalg.qr(new).Q[:, :2]
    planted = change_measures(5 * new, frame(48, 2, 8).T, weight, U, V, rank=2, k=10, epsilon=0.5)
    assert planted["intruders"] == 2
    aligned = change_measures(5 * U[:, :2], V[:, :2].T, weight, U, V, rank=2, k=10, epsilon=0.5)
    assert aligned["intruders"] == 0
    assert aligned["intruder_min_cosine"] == pytest.approx(1, abs=1e-5)
    # as strong, but below the ten strongest of the sum: no intruder by definition
    weak = change_measures(0.01 * new, frame(48, 2, 8).T, weight, U, V, rank=2, k=10, epsilon=0.5)
    assert weak["intruders"] == 0


def test_the_cosine_is_with_the_closest_of_all_base_directions():
    # the change points 30° off u₂₁, which is far outside the leading ten
    weight, U, _ = decaying(64, 48)
    outside = frame(64, 64, 9)
    new = torch.linalg.qr(outside - U @ (U.T @ outside)).Q[:, :1]
    mixed = math.cos(math.pi / 6) * U[:, 20:21] + 0.5 * new
    cosines = intruder_cosines(weight, thin_svd(100 * mixed, frame(48, 1, 8).T), U, 10)
    # at 100 σ₁ the base turns the leading direction by at most 0.01 rad
    assert float(cosines[0]) == pytest.approx(math.cos(math.pi / 6), abs=0.01)


@pytest.mark.parametrize("shape", [(96, 96), (160, 64), (64, 160)])
@pytest.mark.parametrize("power", [0.5, 0.05])  # a trained spectrum, and one nearly flat
@pytest.mark.parametrize("size", [1.0, 1e-2])
def test_intruder_cosines_are_those_of_a_dense_svd(shape, power, size):
    weight, U, _V = decaying(*shape, power)
    L, R = size * frame(shape[0], 4, 5), frame(shape[1], 4, 6).T
    dense = torch.linalg.svd((weight + L @ R).double(), full_matrices=False).U[:, :10]
    expected = (U.double().T @ dense).abs().amax(0)
    found = intruder_cosines(weight, thin_svd(L, R), U, 10)
    # a residual of 1e-5 σ₁² turns a vector by at most that over its gap, which is above 1e-3 σ₁² here
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-2)


def test_leading_vectors_of_a_sum_too_small_for_the_block():
    weight, L, R = draw(6, 8), draw(6, 2, seed=1), draw(2, 8, seed=2)
    U = torch.linalg.svd(weight, full_matrices=False).U
    found = leading_left(weight, L, R, U, 10)
    dense = torch.linalg.svd(weight + L @ R, full_matrices=False).U
    torch.testing.assert_close((found.T @ dense).abs(), torch.eye(6), rtol=0, atol=1e-4)  # float32, tiny gaps allowed


def test_the_best_rank_r_step_has_cosine_one_and_meets_the_ceiling():
    G = draw(30, 20)
    U, S, Vh = torch.linalg.svd(G)
    r = 3
    step = first_step(-0.1 * U[:, :r] * S[:r], Vh[:r], G, r)
    expected = math.sqrt(float((S[:r] ** 2).sum() / (S**2).sum()))
    assert step.ceiling == pytest.approx(expected, rel=1e-5)
    assert step.cosine == pytest.approx(expected, rel=1e-5)
    assert step.cosine_best == pytest.approx(1, rel=1e-5)


def test_a_step_up_a_step_aside_and_a_full_gradient_step():
    G = draw(30, 20)
    U, S, Vh = torch.linalg.svd(G)
    up = first_step(U[:, :2] * S[:2], Vh[:2], G, 2)
    assert up.cosine_best == pytest.approx(-1, rel=1e-5)
    aside = first_step(U[:, :1], Vh[5:6], G, 1)
    assert abs(aside.cosine) < 1e-6
    full = first_step(-G, torch.eye(20), G, 2)  # more than rank 2: −G itself, above the ceiling of rank 2
    assert full.cosine == pytest.approx(1, rel=1e-6)
    assert full.cosine_best == pytest.approx(full.ceiling, rel=1e-5)


def test_no_change_and_no_gradient_are_undefined_and_not_zero():
    weight, U, V = decaying(40, 30)
    found = layer(torch.zeros(40, 4), draw(4, 30), weight, U, V)
    assert found["delta_norm"] == found["relative_norm"] == 0
    undefined = set(found) - {"delta_norm", "relative_norm"}
    assert all(found[name] is None for name in undefined)
    assert first_step(torch.zeros(40, 4), draw(4, 30), weight, 4) is None
    assert first_step(draw(40, 4), draw(4, 30), torch.zeros(40, 30), 4) is None


def test_a_zero_base_has_no_subspace_to_compare_with():
    found = layer(draw(40, 4), draw(4, 30), torch.zeros(40, 30), frame(40, 30), frame(30, 30))
    assert found["relative_norm"] is None
    assert found["energy_left"] is None
    assert found["intruders"] is None
    assert found["effective_rank"] > 1


def test_every_measure_is_defined_for_a_common_layer():
    weight, U, V = decaying(40, 30)
    assert all(value is not None for value in layer(draw(40, 4), draw(4, 30, seed=3), weight, U, V).values())
