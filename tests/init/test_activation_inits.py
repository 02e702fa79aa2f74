"""eva and corda against principal components and exact reconstruction."""

import math

import pytest
import torch
from torch import Generator

from lab.errors import UsageError
from lab.init.corda import Corda
from lab.init.eva import Eva
from lab.init.random import Random
from lab.layer import Evidence, Target
from lab.testing import example_weight

SHAPES = [(48, 48), (72, 40), (40, 72)]


def inputs(width, tokens=500):
    generator = Generator().manual_seed(3)
    x = torch.randn(tokens, width, generator=generator) * torch.arange(1, width + 1) ** -0.7
    return x @ torch.linalg.qr(torch.randn(width, width, generator=generator)).Q


def fill(init, shape, x, rank=6, scaling=2.0, weight=None):
    target = Target("layer", "mlp", 0, shape, False)
    evidence = Evidence(activations=x.T @ x / len(x), num_tokens=len(x))
    weight = example_weight(shape) if weight is None else weight
    return init.factors(target, weight, rank, scaling, evidence, Generator().manual_seed(0))


def eva(**changes):
    return Eva(**({"svd": "exact", "magnitude": "native", "direction": "scheme"} | changes))


def corda(variant="ipm", **changes):
    defaults = {"damping": 0.01, "svd": "exact", "magnitude": "native", "matched_norm": 0.01}
    return Corda(variant=variant, **(defaults | {"direction": "scheme", "offset": "separate"} | changes))


def test_eva_is_the_principal_components_of_the_inputs():
    x = inputs(40)
    made = fill(eva(), (72, 40), x)
    Vh = torch.linalg.svd(x, full_matrices=False).Vh[:6]
    # neighbouring variances lie 10 % apart, so float32 moments turn the directions by 1e-5 at most
    assert torch.allclose((made.A @ Vh.T).abs(), torch.eye(6), atol=1e-4)
    assert not made.B.any()


def test_eva_keeps_the_most_input_variance_any_rank_can():
    x = inputs(40)
    made = fill(eva(), (72, 40), x)
    S = torch.linalg.svdvals(x)
    best = float((S[:6] ** 2).sum() / (S**2).sum())
    assert float((x @ made.A.T).square().sum() / x.square().sum()) == pytest.approx(best, rel=1e-5)
    assert made.info["captured_energy"] == pytest.approx(best, rel=1e-5)
    random = fill(Random(distribution="kaiming", filled="A"), (72, 40), x).A
    frame = torch.linalg.qr(random.T).Q
    assert best > 2 * float((x @ frame).square().sum() / x.square().sum())


def test_a_sketched_eva_keeps_as_much_to_a_thousandth():
    x = inputs(300)
    exact, sketched = (fill(eva(svd=svd), (40, 300), x).info for svd in ("exact", "randomised"))
    assert sketched["svd_exact"] == 0
    assert exact["captured_energy"] * (1 - 1e-3) <= sketched["captured_energy"] <= exact["captured_energy"] * (1 + 1e-5)


def test_a_matched_eva_has_the_size_of_plain_lora():
    x = inputs(300)
    made = fill(eva(magnitude="matched"), (40, 300), x)
    plain = fill(Random(distribution="kaiming", filled="A"), (40, 300), x)
    # ‖A‖² of plain LoRA is a mean over 1800 draws: 1 % deviation
    assert float(made.A.norm()) == pytest.approx(float(plain.A.norm()), rel=0.05)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", ["ipm", "kpm"])
def test_corda_equals_its_definition_with_the_inverse_taken(shape, variant):
    x, weight = inputs(shape[1]).double(), example_weight(shape).double()
    C = x.T @ x / len(x)
    C = C / C.diagonal().mean() + 0.01 * torch.eye(shape[1])
    U, S, Vh = torch.linalg.svd(weight @ C, full_matrices=False)
    kept = slice(0, 6) if variant == "ipm" else slice(min(shape) - 6, min(shape))
    expected = (U[:, kept] * S[kept]) @ Vh[kept] @ torch.linalg.inv(C)
    made = fill(corda(variant), shape, x.float())
    found = 2.0 * (made.B @ made.A).double()
    assert float((found - expected).norm() / expected.norm()) < 1e-3  # float32 moments, condition number near 100
    assert made.offset == "separate"
    root = Vh[kept] @ torch.linalg.inv(C) * (S[kept] / 2.0).sqrt()[:, None]
    assert torch.linalg.svdvals(made.A).double().numpy() == pytest.approx(torch.linalg.svdvals(root).numpy(), rel=1e-2)


def test_cordas_parts_add_up_to_the_weight():
    weight, x = example_weight((40, 40)), inputs(40)
    whole = fill(corda("ipm"), (40, 40), x, rank=40)
    assert torch.allclose(2.0 * whole.B @ whole.A, weight, atol=1e-5)
    first, rest = fill(corda("ipm"), (40, 40), x, rank=10), fill(corda("kpm"), (40, 40), x, rank=30)
    assert torch.allclose(2.0 * (first.B @ first.A + rest.B @ rest.A), weight, atol=1e-4)


def test_corda_does_not_depend_on_the_scale_of_the_inputs():
    x = inputs(40)
    small, large = fill(corda(), (40, 40), x), fill(corda(), (40, 40), 100 * x)
    assert torch.allclose(small.A.abs(), large.A.abs(), atol=1e-4)
    assert torch.allclose(small.B.abs(), large.B.abs(), atol=1e-4)


def test_what_ipm_leaves_behind_matters_least_to_the_outputs():
    weight, x = example_weight((40, 40)), inputs(40)
    made = fill(corda(), (40, 40), x)
    U, S, Vh = torch.linalg.svd(weight)
    plain = weight - (U[:, :6] * S[:6]) @ Vh[:6]
    assert float((x @ (weight - 2.0 * made.B @ made.A).T).norm()) < float((x @ plain.T).norm())


def test_inputs_of_low_rank_are_damped_into_a_defined_pair():
    x = inputs(40, tokens=3)
    for variant in ("ipm", "kpm"):
        made = fill(corda(variant), (40, 40), x)
        assert bool(torch.isfinite(made.A).all() and torch.isfinite(made.B).all())
        assert float(made.A.abs().max()) < 100


def test_a_sketch_for_kpm_and_no_damping_are_refused():
    with pytest.raises(UsageError, match="randomised cannot find the smallest triples"):
        corda("kpm", svd="randomised")
    with pytest.raises(UsageError, match=r"init\.damping=0 is not positive"):
        corda(damping=0)
    assert math.isclose(corda().damping, 0.01)
