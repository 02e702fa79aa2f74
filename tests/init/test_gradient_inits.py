"""lora_ga, lora_one and gora against the theorems of their papers."""

import math

import pytest
import torch
from torch import Generator

from lab.errors import UsageError
from lab.init.gora import Gora
from lab.init.lora_ga import LoraGa
from lab.init.lora_one import LoraOne
from lab.layer import Evidence, Target
from lab.testing import example_evidence, example_weight

SHAPES = [(48, 48), (72, 40), (40, 72)]
CONTROLS = {"magnitude": "native", "matched_norm": 0.01, "direction": "scheme"}


def lora_ga(**changes):
    return LoraGa(**({"stable_gamma": 16, "svd": "exact", "offset": "separate"} | CONTROLS | changes))


def lora_one(**changes):
    return LoraOne(**({"gamma": 128, "svd": "exact", "offset": "none"} | CONTROLS | changes))


def gora(**changes):
    return Gora(**({"gamma": 0.05, "offset": "none"} | CONTROLS | changes))


def fill(init, shape, rank=6, scaling=2.0, seed=0):
    target = Target("layer", "mlp", 0, shape, False)
    evidence = example_evidence(shape)
    return init.factors(target, example_weight(shape), rank, scaling, evidence, Generator().manual_seed(seed))


def cosine(a, b):
    return float((a * b).sum() / (a.norm() * b.norm()))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_step_of_lora_ga_is_the_best_rank_2r_approximation_of_the_gradient(shape):
    G = example_evidence(shape).gradient
    made = fill(lora_ga(), shape)
    A, B = made.A.clone().requires_grad_(), made.B.clone().requires_grad_()
    ((2.0 * B @ A) * G).sum().backward()  # a loss whose gradient in the weight is G
    step = 2.0 * (B.grad @ made.A + made.B @ A.grad)  # first order in the learning rate
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    best = (U[:, :12] * S[:12]) @ Vh[:12]
    assert cosine(step, best) == pytest.approx(1, abs=1e-5)
    c = shape[0] ** 0.25 / 4
    assert torch.allclose(step, 4.0 * c**2 * best, atol=1e-5 * float(best.abs().max()))


def test_lora_ga_has_the_papers_sizes_and_offset():
    made = fill(lora_ga(), (72, 40))
    c = 72**0.25 / 4
    assert torch.allclose(made.A @ made.A.T, c**2 * torch.eye(6), atol=1e-5)
    assert torch.allclose(made.B.T @ made.B, c**2 * torch.eye(6), atol=1e-5)
    assert made.offset == "separate"


def test_lora_ga_needs_room_for_twice_the_rank():
    with pytest.raises(UsageError, match=r"rank=21 for layer \(72 x 40\) exceeds 20, half its smaller side"):
        fill(lora_ga(), (72, 40), rank=21)
    fill(lora_ga(), (72, 40), rank=20)


@pytest.mark.parametrize("shape", SHAPES)
def test_lora_one_points_down_the_gradient_as_far_as_rank_allows(shape):
    G = example_evidence(shape).gradient
    made = fill(lora_one(), shape)
    S = torch.linalg.svdvals(G)
    ceiling = math.sqrt(float((S[:6] ** 2).sum() / (S**2).sum()))
    assert cosine(made.B @ made.A, -G) == pytest.approx(ceiling, abs=1e-5)
    assert torch.linalg.svdvals(made.B @ made.A)[:6].numpy() == pytest.approx((S[:6] / S[0] / 128).numpy(), rel=1e-4)
    assert torch.allclose(made.A @ made.A.T, made.B.T @ made.B, atol=1e-7)
    assert made.offset == "none"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scaling", [0.5, 8.0])
def test_gora_is_the_least_squares_fit_of_a_descent_step(shape, scaling):
    G = example_evidence(shape).gradient
    made = fill(gora(), shape, scaling=scaling)
    step = -0.05 * math.sqrt(shape[1] / 6) * G
    fit = torch.linalg.lstsq(made.A.T.double(), step.T.double()).solution.T / scaling
    assert torch.allclose(made.B.double(), fit, atol=1e-5 * float(fit.abs().max()))
    assert float(made.A.abs().max()) <= 1 / math.sqrt(shape[1])


def test_goras_product_has_gammas_share_of_the_gradient_on_average():
    norms = [fill(gora(), (72, 40), seed=seed).info["product_norm"] for seed in range(40)]
    G = example_evidence((72, 40)).gradient
    # a random 6-plane of R^40 keeps 6/40 of the energy with a deviation of a third; the mean of 40 errs by 5 %
    share = math.sqrt(sum(norm**2 for norm in norms) / 40) / float(G.norm())
    assert share == pytest.approx(0.05, rel=0.15)


@pytest.mark.parametrize("init", [lora_ga, lora_one, gora])
def test_a_size_that_is_not_positive_is_refused(init):
    key = "stable_gamma" if init is lora_ga else "gamma"
    with pytest.raises(UsageError, match=rf"init\.{key}=0 is not positive"):
        init(**{key: 0})


def test_a_gradient_of_rank_one_still_gives_a_live_pair():
    target = Target("layer", "mlp", 0, (40, 40), False)
    evidence = Evidence(gradient=torch.outer(torch.arange(40.0), torch.ones(40)))
    for init in (lora_ga(), lora_one(), gora()):
        made = init.factors(target, example_weight((40, 40)), 4, 2.0, evidence, Generator().manual_seed(0))
        assert bool(torch.isfinite(made.A).all() and torch.isfinite(made.B).all())
        assert made.info["captured_energy"] <= 1 + 1e-6
