"""Moments across a switch: exact where they are linear, and a first update as large as the last one was."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lab.editors.factoring import factored, leading, minor, onto
from lab.editors.moments import (
    Adam,
    Factors,
    joined,
    joined_adam,
    product_change,
    rms,
    scaling_for_adam,
    split_adam,
    step_for_muon,
)
from lab.svd_policy.switching import Move
from lab.training.muon import MuonAdamW

OUT, IN = 64, 48
GROUP = {"betas": (0.9, 0.95), "eps": 1e-8}


def trained(optimizer_of, steps=30, seed=0):
    """A regression in one matrix, trained a little: the weight, its optimizer, and the loss of a batch."""
    generator = torch.Generator().manual_seed(seed)
    X, Y = torch.randn(256, IN, generator=generator), torch.randn(256, OUT, generator=generator)
    target = X @ torch.randn(IN, OUT, generator=generator) / IN**0.5 + 0.5 * Y
    W = nn.Parameter(torch.randn(OUT, IN, generator=generator) / IN**0.5)
    optimizer = optimizer_of([W])

    def loss(step, weight):
        rows = slice(16 * (step % 16), 16 * (step % 16) + 16)
        return (X[rows] @ weight.T - target[rows]).square().mean()

    for step in range(steps):
        optimizer.zero_grad()
        loss(step, W).backward()
        optimizer.step()
    return W, optimizer, loss


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, betas=GROUP["betas"], weight_decay=0.0)


def slow_adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0)


def muon(parameters):
    group = {"params": parameters, "kind": "muon", "lr": 0.02, "momentum": 0.95, "weight_decay": 0.0}
    return MuonAdamW([group])


def last_update(make, steps):
    """The change of the weight at the last of the steps."""
    before = trained(make, steps - 1)[0].detach()
    return trained(make, steps)[0].detach() - before


class Live:
    """A pair as the optimizer sees it."""

    def __init__(self, pair):
        self.A, self.B = nn.Parameter(pair.A.clone()), nn.Parameter(pair.B.clone())
        self.scaling, self.step = pair.scaling, pair.step

    def product(self):
        return self.scaling * (self.B @ self.A)


def test_the_leading_factors_are_the_best_approximation_and_the_minor_ones_what_is_left():
    W = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(1))
    S = torch.linalg.svdvals(W.double())
    major, rest = leading(W, 10), minor(W, IN - 10)
    assert torch.allclose(major.B @ major.A + rest.B @ rest.A, W.double(), atol=1e-12)
    assert major.tail == pytest.approx(float((S[10:].square().sum() / S.square().sum()).sqrt()))
    assert torch.allclose(major.A @ major.A.T, major.B.T @ major.B, atol=1e-10), "balanced"


def test_a_product_of_zero_can_move_along_what_the_optimizer_was_moving():
    M = torch.randn(OUT, 3) @ torch.randn(3, IN)
    split = onto(torch.zeros(OUT, IN), M, 8, seed=0)
    assert not bool(split.B.any())
    assert torch.allclose(split.A @ split.A.T, torch.eye(8, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(M.double() @ split.A.T @ split.A, M.double(), atol=1e-4)


def test_first_moments_go_through_exactly_as_gradients_do_and_come_back_as_far_as_the_pair_can_tell():
    """By autograd: the factors' gradients of ⟨m, s B A⟩; back, the tangent projection of m, in float64."""
    W, m = torch.randn(OUT, IN), torch.randn(OUT, IN)
    split = leading(W, 7)
    pair = Live(Factors(split.A.float(), split.B.float(), 0.7))
    (pair.product() * m).sum().backward()
    of_B, of_A = split_adam(Adam(m, m.square(), 0.0), Factors(pair.A.detach(), pair.B.detach(), 0.7))
    assert torch.allclose(of_B.mean, pair.B.grad, atol=1e-5)
    assert torch.allclose(of_A.mean, pair.A.grad, atol=1e-5)
    P, Q = (torch.linalg.qr(x)[0] for x in (split.B, split.A.T))
    P, Q, m = P @ P.T, Q @ Q.T, m.double()
    expected = P @ m + m @ Q - P @ m @ Q
    assert torch.allclose(joined(pair, of_B.mean, of_A.mean).double(), expected, atol=1e-4)


@pytest.mark.parametrize("rank", [4, 12, 24])
def test_the_first_update_of_the_pair_is_as_large_as_the_weights_last_under_adamw(rank):
    W, optimizer, loss = trained(adamw)
    expected = rms(last_update(adamw, 30))
    adam, split = Adam.of(optimizer.state[W], GROUP), leading(W.detach(), rank)
    s = scaling_for_adam(adam, Factors(split.A.float(), split.B.float()))
    pair = Live(Factors((split.A / s**0.5).float(), (split.B / s**0.5).float(), s))
    rest = W.detach() - pair.product().detach()
    after, of = adamw([pair.A, pair.B]), split_adam(adam, Factors(pair.A.detach(), pair.B.detach(), s))
    for parameter, moments in zip((pair.B, pair.A), of, strict=True):
        after.state[parameter] = moments.state(optimizer.state[W]["step"], GROUP)
    before = pair.product().detach().clone()
    loss(30, pair.product() + rest).backward()
    after.step()
    assert 0.8 <= rms(pair.product().detach() - before) / expected <= 1.25


@pytest.mark.parametrize("rank", [4, 12, 24])
def test_the_first_update_of_the_pair_is_as_large_as_the_weights_last_under_muon(rank):
    W, optimizer, loss = trained(muon)
    expected, split = rms(last_update(muon, 30)), leading(W.detach(), rank)
    momentum = optimizer.state[W]["momentum"]
    factors = Factors(split.A.float(), split.B.float())
    factors.step = step_for_muon(momentum, factors, torch.float32)
    pair = Live(factors)
    rest, after = W.detach() - pair.product().detach(), muon([pair.A, pair.B])
    after.pairs = [pair]
    after.state[pair.B]["momentum"] = momentum @ factors.A.T
    after.state[pair.A]["momentum"] = factors.B.T @ momentum
    before = pair.product().detach().clone()
    loss(30, pair.product() + rest).backward()
    after.step()
    assert 0.8 <= rms(pair.product().detach() - before) / expected <= 1.25


def test_the_first_update_of_the_weight_is_as_large_as_the_pairs_last_under_adamw():
    W, optimizer, loss = trained(adamw)
    adam, split = Adam.of(optimizer.state[W], GROUP), leading(W.detach(), 12)
    s = scaling_for_adam(adam, Factors(split.A.float(), split.B.float()))
    pair = Live(Factors((split.A / s**0.5).float(), (split.B / s**0.5).float(), s))
    rest = W.detach() - pair.product().detach()
    low = adamw([pair.A, pair.B])
    for parameter, moments in zip(
        (pair.B, pair.A), split_adam(adam, Factors(pair.A.detach(), pair.B.detach(), s)), strict=True
    ):
        low.state[parameter] = moments.state(optimizer.state[W]["step"], GROUP)
    for step in range(30, 40):
        low.zero_grad()
        loss(step, pair.product() + rest).backward()
        before = pair.product().detach().clone()
        low.step()
    last = rms(pair.product().detach() - before)
    state = joined_adam(pair, Adam.of(low.state[pair.B], GROUP), Adam.of(low.state[pair.A], GROUP))
    weight = nn.Parameter((pair.product() + rest).detach())
    full = adamw([weight])
    full.state[weight] = state.state(low.state[pair.B]["step"], GROUP)
    before = weight.detach().clone()
    loss(40, weight).backward()
    full.step()
    assert 0.8 <= rms(weight.detach() - before) / last <= 1.25


@pytest.mark.parametrize("rank", [12, 24])
def test_the_first_update_of_the_weight_is_as_large_as_the_pairs_last_under_muon(rank):
    """The momentum has rank 2r, at first: with r = 4 of 48 the ratio is 0.7 once, and 0.93 the step after."""
    W, optimizer, loss = trained(muon)
    split, momentum = leading(W.detach(), rank), optimizer.state[W]["momentum"]
    factors = Factors(split.A.float(), split.B.float())
    factors.step = step_for_muon(momentum, factors, torch.float32)
    pair = Live(factors)
    rest, low = W.detach() - pair.product().detach(), muon([pair.A, pair.B])
    low.pairs = [pair]
    low.state[pair.B]["momentum"], low.state[pair.A]["momentum"] = momentum @ factors.A.T, factors.B.T @ momentum
    for step in range(30, 40):
        low.zero_grad()
        loss(step, pair.product() + rest).backward()
        before = pair.product().detach().clone()
        low.step()
    last, full = rms(pair.product().detach() - before), muon([nn.Parameter((pair.product() + rest).detach())])
    (weight,) = full.param_groups[0]["params"]
    full.state[weight]["momentum"] = joined(pair, low.state[pair.B]["momentum"], low.state[pair.A]["momentum"])
    before = weight.detach().clone()
    loss(40, weight).backward()
    full.step()
    assert 0.8 <= rms(weight.detach() - before) / last <= 1.25


@pytest.mark.parametrize(("make", "low", "high"), [(muon, 0.7, 1.3), (slow_adamw, 0.7, 1.5)])
def test_a_pair_that_starts_from_a_product_of_zero_trains_as_fast_as_its_weight_did(make, low, high):
    """Over the steps behind the first, at which B alone moves and the other half of the change is missing.

    With the factor measured at that first step Muon's product moved twice as far; with A's second moment at 0 and the
    weight's count of steps, so did AdamW's.
    """
    W, optimizer, loss = trained(make, steps=300)
    group, state = optimizer.param_groups[0], optimizer.state[W]
    own = rms(last_update(make, 300))
    move = Move("layer", "delta", 12, "test")
    policy = SimpleNamespace(start="zero", residual="fade")
    made = factored(move, W.detach(), {**group, "params": [W]}, state, 300, policy, torch.float32)
    pair = Live(Factors(made.tensors["A"], made.tensors["B"], made.form.scaling, made.form.step))
    again = make([pair.A, pair.B])
    for parameter, its in zip((pair.A, pair.B), made.states, strict=True):
        again.state[parameter] = {key: value.clone() for key, value in its.items()}
    if make is muon:
        again.pairs = [pair]
    sizes = []
    for step in range(300, 330):
        before, A = pair.product().detach().clone(), pair.A.detach().clone()
        again.zero_grad()
        loss(step, made.tensors["E"] + pair.product()).backward()
        again.step()
        sizes.append(rms(pair.product().detach() - before) / own)
        if make is slow_adamw:  # which moves a parameter by its rate at most, but for a few entries
            assert rms(pair.A.detach() - A) < 1.1 * group["lr"]
    assert low < sum(sizes[5:]) / len(sizes[5:]) < high, sizes


def test_before_a_first_step_a_scaling_makes_two_signs_as_large_as_one():
    split = leading(torch.randn(OUT, IN, generator=torch.Generator().manual_seed(3)), 9)
    s = scaling_for_adam(None, Factors(split.A.float(), split.B.float()))
    A, B = (split.A / s**0.5).float(), (split.B / s**0.5).float()
    generator = torch.Generator().manual_seed(4)
    signs = [torch.randn(x.shape, generator=generator).sign() for x in (B, A)]
    assert rms(product_change(Factors(A, B, s), *signs)) == pytest.approx(1.0, rel=0.1)  # of 3072 entries' chance


def test_moments_of_nothing_are_finite():
    zero = Adam(torch.zeros(OUT, IN), torch.zeros(OUT, IN), 1e-8)
    pair = Factors(torch.randn(5, IN), torch.zeros(OUT, 5))
    of_B, of_A = split_adam(zero, pair)
    back = joined_adam(pair, of_B, of_A)
    assert scaling_for_adam(zero, pair) == 1.0
    assert all(bool(torch.isfinite(x).all()) for x in (back.mean, back.square, back.update))
    assert step_for_muon(torch.zeros(OUT, IN), pair, torch.float32) > 0
