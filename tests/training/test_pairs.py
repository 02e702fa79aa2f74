"""A pair in a weight's place is stepped, clipped and decayed as that weight, however its product is split."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lab.training.muon import MuonAdamW, orthogonalise
from lab.training.pairs import cholesky, decay_once, tangent_square, total_norm

OUT, IN, RANK = 24, 40, 5


@dataclass
class Pair:
    A: nn.Parameter
    B: nn.Parameter
    scaling: float = 1.0
    step: float | None = None

    def product(self):
        return self.scaling * (self.B.detach() @ self.A.detach())


def pair_of(seed, scale=1.0, scaling=1.0):
    """A pair with the gradients of a random linear loss ⟨G, s B A⟩, split as (B·scale, A/scale)."""
    generator = torch.Generator().manual_seed(seed)
    B, A = torch.randn(OUT, RANK, generator=generator), torch.randn(RANK, IN, generator=generator)
    G = torch.randn(OUT, IN, generator=generator)
    pair = Pair(nn.Parameter(A / scale), nn.Parameter(B * scale), scaling)
    (pair.scaling * (pair.B @ pair.A) * G).sum().backward()
    return pair, G


def muon(pair, **settings):
    group = {"params": [pair.A, pair.B], "kind": "muon", "lr": 0.02, "momentum": 0.95, "weight_decay": 0.0, **settings}
    optimizer = MuonAdamW([group])
    optimizer.pairs = [pair]
    return optimizer


@pytest.mark.parametrize("scaling", [1.0, 0.3])
def test_the_norm_of_a_pair_is_that_of_its_weights_gradient_along_what_the_pair_can_move(scaling):
    pair, G = pair_of(0, scaling=scaling)
    P, Q = torch.linalg.qr(pair.B.detach().double())[0], torch.linalg.qr(pair.A.detach().double().T)[0]
    P, Q, G = P @ P.T, Q @ Q.T, G.double()
    expected = torch.linalg.matrix_norm(P @ G + G @ Q - P @ G @ Q) ** 2
    assert float(tangent_square(pair)) == pytest.approx(float(expected), rel=1e-4)  # float32, condition about 3


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-13, 1e9, 1e18, 1e30, 1e37])
def test_a_factor_is_whitened_at_any_scale(size):
    factor = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    factor = factor / factor.abs().max()
    rows = torch.linalg.solve_triangular(cholesky(factor * size), factor * size, upper=False)
    # The ridge is 4 epsilons of the norm, 5e-7, times a condition of about 4.
    torch.testing.assert_close(rows @ rows.T, torch.eye(8), rtol=0, atol=1e-5)
    if 1e-20 < size < 1e20:  # a power of two changes no bit
        torch.testing.assert_close(cholesky(factor * 2.0**20), cholesky(factor) * 2.0**20, rtol=0, atol=0)
    torch.testing.assert_close(cholesky(torch.zeros(3, 5)), torch.eye(3), rtol=0, atol=0)


def test_clipping_counts_a_pair_once_and_by_no_split_of_it():
    other = nn.Parameter(torch.zeros(3))
    other.grad = torch.tensor([1.0, 2.0, 2.0])
    norms = []
    for scale in (1.0, 10.0):
        pair, _ = pair_of(1, scale)
        norms.append(float(total_norm([other, pair.A, pair.B], [pair])))
        assert norms[-1] ** 2 == pytest.approx(9.0 + float(tangent_square(pair)), rel=1e-6)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_a_pair_without_gradients_is_left_as_it_is():
    """AdamW skips such a parameter, its decay included; undone all the same, 1000 steps would make A a tenth larger."""
    pair, _ = pair_of(4)
    pair.A.grad = pair.B.grad = None
    optimizer = torch.optim.AdamW([pair.A, pair.B], lr=1e-3, weight_decay=0.1)
    before = pair.product()
    for _ in range(3):
        decay_once(optimizer, [pair])
        optimizer.step()
    assert torch.equal(pair.product(), before)


def test_without_pairs_the_norm_is_torchs_to_the_bit():
    parameters = [nn.Parameter(torch.randn(4, 4)) for _ in range(3)]
    for parameter in parameters:
        parameter.grad = torch.randn(4, 4)
    expected = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    assert torch.equal(total_norm(parameters, []), expected)


def test_muons_step_of_a_product_does_not_depend_on_its_split():
    changes = []
    for scale in (1.0, 10.0):
        pair, _ = pair_of(2, scale)
        optimizer, before = muon(pair), pair.product()
        for _ in range(3):  # momentum, too, is of the split
            optimizer.step()
        changes.append(pair.product() - before)
    error = torch.linalg.matrix_norm(changes[0] - changes[1]) / torch.linalg.matrix_norm(changes[0])
    assert float(error) <= 1e-4


def test_muons_step_of_a_product_is_that_of_the_paper_by_symmetric_roots_in_float64():
    """ΔB = NS(M_B S_A^-½) S_A^-½ (arXiv:2606.12921); after one step the look ahead is a multiple of the gradient."""
    pair, G = pair_of(3)
    A, B, G = pair.A.detach().double(), pair.B.detach().double(), G.double()
    muon(pair).step()

    def root(gram):
        values, vectors = torch.linalg.eigh(gram)
        return vectors @ torch.diag(values.rsqrt()) @ vectors.T

    R_A, R_B = root(A @ A.T), root(B.T @ B)
    polar = [orthogonalise([x.float()], torch.float32)[0].double() for x in (G @ A.T @ R_A, R_B @ B.T @ G)]
    rate = 0.02 * max(1.0, OUT / IN) ** 0.5
    # Newton-Schulz in float32 of inputs rotated against each other: 1e-5 of a step, and B and A are held in float32.
    assert torch.allclose(pair.B.detach().double(), B - rate * polar[0] @ R_A, atol=1e-5)
    assert torch.allclose(pair.A.detach().double(), A - rate * R_B @ polar[1], atol=1e-5)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_factor_on_muons_step_scales_it(factor):
    pairs = [pair_of(4)[0], pair_of(4)[0]]
    pairs[1].step = factor
    before = pairs[0].B.detach().clone()
    for pair in pairs:
        muon(pair).step()
    assert torch.allclose(pairs[1].B - before, factor * (pairs[0].B - before), atol=1e-6)


def test_a_product_of_zero_is_stepped_without_a_number_that_is_none():
    pair, _ = pair_of(5)
    with torch.no_grad():
        pair.B.zero_()
    pair.A.grad = torch.zeros_like(pair.A)  # s Bᵀ G
    A = pair.A.detach().clone()
    muon(pair).step()
    assert torch.equal(pair.A.detach(), A)
    assert bool(torch.isfinite(pair.B).all())
    assert bool(pair.B.any())


@pytest.mark.parametrize("rank", [24, 255, 700])
@pytest.mark.parametrize("spread", ["one strong", "decay"])
def test_whitening_makes_nothing_of_directions_that_rounding_hides(rank, spread):
    """One direction 1e4 times the others, or values down to 1e-6: float32's epsilon of λ₁ is more than most λ are."""
    generator = torch.Generator().manual_seed(0)
    if spread == "one strong":
        F = 1e-3 * torch.randn(rank, rank + 1, generator=generator)
        F += 10 * torch.randn(rank, 1, generator=generator) @ torch.randn(1, rank + 1, generator=generator) / rank**0.5
    else:
        P, Q = (torch.linalg.qr(torch.randn(n, rank, generator=generator)).Q for n in (rank, rank + 1))
        F = (P * torch.logspace(0, -6, rank)) @ Q.T
    lengths = torch.linalg.svdvals(torch.linalg.solve_triangular(cholesky(F), F, upper=False).double())
    assert float(lengths[0]) == pytest.approx(1, abs=1e-2)  # the strong one is a unit, and none is longer


def test_a_factor_that_is_not_finite_is_an_error():
    with pytest.raises(torch.linalg.LinAlgError):
        cholesky(torch.full((3, 4), float("nan")))


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_weight_decay_acts_on_the_product_once(kind):
    pair, _ = pair_of(6)
    pair.A.grad, pair.B.grad = torch.zeros_like(pair.A), torch.zeros_like(pair.B)
    before, lr, decay = pair.product(), 0.1, 0.5
    if kind == "muon":
        optimizer = muon(pair, lr=lr, weight_decay=decay)
    else:
        optimizer = torch.optim.AdamW([pair.A, pair.B], lr=lr, weight_decay=decay, fused=True)
        decay_once(optimizer, [pair])
    optimizer.step()
    assert torch.allclose(pair.product(), (1 - lr * decay) * before, atol=1e-5)  # of entries up to 4
