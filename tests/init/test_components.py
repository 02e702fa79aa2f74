import peft
import pytest
import torch
from torch import Generator, nn

from lab.errors import UsageError
from lab.init.components import Components
from lab.layer import Evidence, Target
from lab.testing import example_weight

SHAPES = [(48, 48), (72, 40), (40, 72)]


def components(which, svd="exact", **changes):
    defaults = {"magnitude": "native", "matched_norm": 0.01, "direction": "scheme", "offset": "separate"}
    return Components(which=which, svd=svd, **(defaults | changes))


def fill(init, weight, rank=6, scaling=2.0, seed=0):
    target = Target("layer", "mlp", 0, tuple(weight.shape), False)
    return init.factors(target, weight, rank, scaling, Evidence(), Generator().manual_seed(seed))


@pytest.mark.parametrize("svd", ["exact", "randomised"])
@pytest.mark.parametrize("shape", SHAPES)
def test_pissa_is_pefts_pissa(shape, svd):
    weight = example_weight(shape)
    net = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False))
    net[0].weight.data = weight.clone()
    config = peft.LoraConfig(r=6, lora_alpha=12, target_modules=["0"], init_lora_weights="pissa")
    layer = peft.get_peft_model(net, config).base_model.model[0]
    reference = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    made = fill(components("principal", svd), weight)
    # the signs of a pair are arbitrary, its product and its Gram matrices are not
    assert torch.allclose(made.B @ made.A, reference, atol=2e-6)
    assert torch.allclose(made.A @ made.A.T, made.B.T @ made.B, atol=2e-6)
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert torch.allclose((A @ made.A.T).abs(), A @ A.T, atol=1e-5)
    assert torch.allclose((B.T @ made.B).abs(), B.T @ B, atol=1e-5)
    assert torch.allclose(weight - 2.0 * made.B @ made.A, layer.base_layer.weight, atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("which", "kept"), [("minor", slice(34, 40)), ("middle", slice(17, 23))])
def test_the_product_is_the_named_part_of_the_weight(shape, which, kept):
    weight = example_weight(shape)
    U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
    if shape == (48, 48):
        kept = slice(kept.start + (8 if which == "minor" else 4), kept.stop + (8 if which == "minor" else 4))
    expected = (U[:, kept] * S[kept]) @ Vh[kept]
    made = fill(components(which), weight)
    # float32 rounding of directions whose neighbours lie 1 % apart
    assert torch.allclose(2.0 * (made.B @ made.A).double(), expected, atol=1e-5)
    assert made.info["captured_energy"] == pytest.approx(float((S[kept] ** 2).sum() / (S**2).sum()), rel=1e-4)


def test_random_components_are_components_and_depend_on_the_seed():
    weight = example_weight((72, 40))
    U, _, Vh = torch.linalg.svd(weight, full_matrices=False)
    seen = set()
    for seed in range(3):
        made = fill(components("random"), weight, seed=seed)
        core = U.T @ (2.0 * made.B @ made.A) @ Vh.T
        chosen = core.diagonal().abs() > 0.05
        assert int(chosen.sum()) == 6
        assert float((core - torch.diag(core.diagonal())).abs().max()) < 1e-5
        seen.add(tuple(chosen.nonzero().flatten().tolist()))
    assert len(seen) == 3


def test_minor_components_of_float32_noise_stay_orthonormal():
    # a square normal matrix has σ_min/σ_max near 1/n², the hardest tail a Gram matrix meets in practice
    weight = torch.randn(128, 128, generator=Generator().manual_seed(0))
    made = fill(components("minor"), weight, rank=4, scaling=1.0)
    S = torch.linalg.svdvals(weight.double())[-4:]
    assert torch.allclose(torch.linalg.svdvals(made.B @ made.A)[:4].double(), S, rtol=1e-3)


def test_a_sketch_of_anything_but_the_principal_part_is_refused():
    with pytest.raises(UsageError, match="randomised cannot find the minor components"):
        components("minor", svd="randomised")


@pytest.mark.parametrize("which", ["principal", "minor", "middle", "random"])
def test_a_zero_weight_is_refused_with_the_layer(which):
    with pytest.raises(UsageError, match="the weight of layer is zero, so both factors would be zero"):
        fill(components(which), torch.zeros(40, 40))


def test_a_rank_deficient_weight_has_a_defined_pair():
    weight = example_weight((40, 40))
    weight[:, 3:] = 0  # rank 3
    made = fill(components("principal"), weight)
    assert torch.allclose(2.0 * made.B @ made.A, weight, atol=1e-6)
    assert bool(torch.isfinite(made.A).all() and torch.isfinite(made.B).all())
