import math

import pytest
import torch
from torch import Generator

from lab.errors import UsageError
from lab.init.svd import Svd
from lab.layer import Evidence, Target
from lab.testing import example_evidence, example_weight

SHAPES = [(48, 48), (72, 40), (40, 72)]


def svd(source="gradient", **changes):
    defaults = {
        "size": 0.01,
        "warmup_steps": 20,
        "warmup_lr": 1e-4,
        "teacher": "folder" if source == "teacher" else None,
        "svd": "randomised",
        "magnitude": "native",
        "matched_norm": 0.01,
        "direction": "scheme",
        "offset": "auto",
    }
    return Svd(source=source, **(defaults | changes))


def fill(init, weight, evidence, rank=6, scaling=2.0):
    target = Target("layer", "mlp", 0, tuple(weight.shape), False)
    return init.factors(target, weight, rank, scaling, evidence, Generator().manual_seed(0))


def cosine(a, b):
    return float((a * b).sum() / (a.norm() * b.norm()))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_product_points_down_the_gradient_as_far_as_rank_allows(shape):
    weight, evidence = example_weight(shape), example_evidence(shape)
    made = fill(svd(), weight, evidence)
    S = torch.linalg.svdvals(evidence.gradient)
    ceiling = math.sqrt(float((S[:6] ** 2).sum() / (S**2).sum()))  # Eckart and Young
    assert cosine(made.B @ made.A, -evidence.gradient) == pytest.approx(ceiling, rel=1e-4)
    assert made.info["captured_energy"] == pytest.approx(ceiling**2, rel=1e-4)


@pytest.mark.parametrize("scaling", [0.5, 2.0, 8.0])
def test_the_gradients_product_has_the_stated_share_of_the_weight(scaling):
    weight, evidence = example_weight((72, 40)), example_evidence((72, 40))
    made = fill(svd(size=0.02), weight, evidence, scaling=scaling)
    assert float((scaling * made.B @ made.A).norm() / weight.norm()) == pytest.approx(0.02, rel=1e-5)
    assert made.offset == "separate"
    tiny = Evidence(gradient=evidence.gradient * 1e-12)  # a gradient's length is arbitrary and must not matter
    again = fill(svd(size=0.02), weight, tiny, scaling=scaling)
    # another scale rounds otherwise inside the decomposition: 1e-3 of an entry of ordinary size
    assert torch.allclose(again.B @ again.A, made.B @ made.A, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("source", ["warmup", "teacher"])
def test_a_weight_change_is_started_from(source):
    weight, evidence = example_weight((72, 40)), example_evidence((72, 40))
    made = fill(svd(source), weight, evidence)
    U, S, Vh = torch.linalg.svd(evidence.delta, full_matrices=False)
    assert torch.allclose(2.0 * made.B @ made.A, (U[:, :6] * S[:6]) @ Vh[:6], atol=1e-7)
    assert torch.allclose(made.A @ made.A.T, made.B.T @ made.B, atol=1e-7)
    assert made.offset == "none"
    assert svd(source).needs == {"delta"}
    assert svd(source).label == f"svd[{source}]"


def test_one_gradient_step_from_the_pair_descends():
    # f(W) = ½‖W − T‖²: G = W − T, and W + s B A must lower f for a size below 2⟨D,P⟩/‖P‖
    weight, goal = example_weight((72, 40)), example_weight((72, 40)) + example_evidence((72, 40)).delta * 10
    made = fill(svd(), weight, Evidence(gradient=weight - goal))
    assert float((weight + 2.0 * made.B @ made.A - goal).norm()) < float((weight - goal).norm())


def test_an_explicit_offset_wins_over_auto():
    weight, evidence = example_weight((40, 40)), example_evidence((40, 40))
    assert fill(svd(offset="fold"), weight, evidence).offset == "fold"
    assert fill(svd("warmup", offset="separate"), weight, evidence).offset == "separate"


def test_a_teacher_and_a_warmup_need_their_source():
    with pytest.raises(UsageError, match=r"init\.teacher=DIR"):
        svd("teacher", teacher=None)
    with pytest.raises(UsageError, match="warmup_steps=0"):
        svd("warmup", warmup_steps=0)
    with pytest.raises(UsageError, match=r"init\.size=0 is not a positive number"):
        svd(size=0)


def test_a_zero_weight_has_no_size_to_take_a_share_of():
    with pytest.raises(UsageError, match="the weight of layer is zero"):
        fill(svd(), torch.zeros(40, 40), example_evidence((40, 40)))
