"""What a scheme returns is what the model holds, whatever the scheme is."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from adapter_models import MODELS, Noise, Principal, base, case, installed, logits

from lab.adapter.initialise import generator_for, initialise
from lab.adapter.layer import adapted_layers
from lab.adapter.verify import verify
from lab.errors import UsageError
from lab.init import Factors
from lab.layer import Evidence, weight_of


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_principal_pair_is_the_best_low_rank_part_of_the_weight(model: str, dtype: torch.dtype) -> None:
    ours = case(base(model, dtype))
    pristine = base(model, dtype)
    for name, layer in adapted_layers(ours.model).items():
        weight = weight_of(pristine.get_submodule(name)).float()
        rest = torch.linalg.svdvals(weight - layer.s * layer.B @ layer.A)
        S = torch.linalg.svdvals(weight)
        # Eckart and Young: what is left is the tail of the spectrum, to fp32 rounding of the largest value.
        torch.testing.assert_close(rest[: len(S) - ours.plan[name]], S[ours.plan[name] :], rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_folding_takes_the_pair_off_the_weight_and_keeps_the_function(model: str) -> None:
    ours, pristine = case(base(model), Principal("fold")), base(model)
    torch.testing.assert_close(logits(ours.model), logits(pristine), rtol=1e-4, atol=1e-4)  # fp32 rounding of W − sBA
    for name, layer in adapted_layers(ours.model).items():
        moved = weight_of(pristine.get_submodule(name)) - weight_of(layer.get_base_layer())
        torch.testing.assert_close(moved, (layer.s * layer.B @ layer.A).detach(), rtol=1e-5, atol=1e-6)


def test_without_an_offset_the_function_moves_at_step_0() -> None:
    ours = case(base("llama"), Noise())
    assert ours.structure.offset == "none"
    assert (logits(ours.model) - logits(base("llama"))).abs().max() > 0.1


def test_the_reported_norm_is_that_of_the_product() -> None:
    ours = case(base("llama"))
    norms = {n: float((layer.s * layer.B @ layer.A).norm()) for n, layer in adapted_layers(ours.model).items()}
    for name, layer in ours.filled.layers.items():
        assert math.isclose(layer.delta_norm, norms[name], rel_tol=1e-5)
    assert math.isclose(ours.filled.delta_norm, math.sqrt(sum(n**2 for n in norms.values())), rel_tol=1e-5)
    assert all(layer.info["captured"] > 0 and layer.seconds > 0 for layer in ours.filled.layers.values())


def test_a_layers_numbers_depend_on_the_seed_and_its_name_only() -> None:
    def factors(seed: int, only: list[str] | None = None) -> dict[str, torch.Tensor]:
        targets, _, adapted = installed(base("llama"))
        chosen = [target for target in targets if only is None or target.name in only]
        torch.manual_seed(torch.seed())  # the global generator plays no part
        initialise(adapted, Noise(), chosen, {}, seed=seed)
        return {name: layer.A.detach() for name, layer in adapted_layers(adapted).items()}

    whole, again, other = factors(0), factors(0), factors(1)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not any(torch.equal(whole[name], other[name]) for name in whole)
    last = list(whole)[-1]
    assert torch.equal(factors(0, [last])[last], whole[last])
    # A pure function of (seed, name): the same in every process, unlike Python's hash.
    assert int(torch.randint(2**40, (), generator=generator_for(0, "a"))) == 137382673253


@dataclass(frozen=True)
class Wrong:
    """Principal factors, spoilt at one layer."""

    change: Any
    at: str = "model.layers.1.mlp.up_proj"
    needs: frozenset = frozenset()

    def factors(self, target, weight, rank, scaling, evidence, generator) -> Factors:
        made = Principal("none").factors(target, weight, rank, scaling, evidence, generator)
        return self.change(made) if target.name == self.at else made


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: Factors(f.A[:-1], f.B), "A of shape"),
        (lambda f: Factors(f.A, f.B.T), "B of shape"),
        (lambda f: Factors(f.A.double(), f.B), "A in torch.float64"),
        (lambda f: Factors(f.A, f.B * torch.nan), "B with .* not finite"),
        (lambda f: Factors(f.A, f.B, "subtract"), "'subtract'"),
    ],
)
def test_a_scheme_that_returns_nonsense_is_refused_by_layer(change, said: str) -> None:
    targets, _, adapted = installed(base("llama"), plan=None)
    with pytest.raises(UsageError, match=said):
        initialise(adapted, Wrong(change), targets, {}, seed=0)


def test_a_scheme_cannot_change_the_base_through_the_weight_it_is_given() -> None:
    class Vandal(Noise):
        def factors(self, target, weight, rank, scaling, evidence, generator) -> Factors:
            weight.zero_()
            return super().factors(target, weight, rank, scaling, evidence, generator)

    ours = case(base("llama"), Vandal())
    with ours.model.disable_adapter():
        assert torch.equal(logits(ours.model), logits(base("llama")))


@pytest.mark.parametrize("scheme", [Principal("separate"), Principal("fold"), Noise("none")])
def test_dora_is_refused_where_the_pair_does_not_start_at_zero(scheme) -> None:
    with pytest.raises(UsageError, match="use_dora"):
        case(base("llama"), scheme, use_dora=True)


def test_folding_a_shared_weight_is_refused() -> None:
    net = base("llama")
    net.model.layers[1].mlp.up_proj.weight = net.model.layers[0].mlp.up_proj.weight
    with pytest.raises(UsageError, match="another module shares"):
        case(net, Principal("fold"))


@dataclass(frozen=True)
class Rounded:
    """LoftQ's shape: another base for the layer, and the pair that makes up for part of the difference."""

    offset: str = "none"
    needs: frozenset = frozenset()

    def factors(self, target, weight, rank, scaling, evidence, generator) -> Factors:
        Q = (weight * 8).round() / 8
        made = Principal("none").factors(target, weight - Q, rank, scaling, evidence, generator)
        return replace(made, base=Q, offset=self.offset)


@pytest.mark.parametrize("model", MODELS)
def test_a_scheme_may_give_the_layer_another_base(model: str) -> None:
    ours, pristine = case(base(model), Rounded()), base(model)
    for name, layer in adapted_layers(ours.model).items():
        Q = weight_of(layer.get_base_layer())
        assert torch.equal(Q, (weight_of(pristine.get_submodule(name)) * 8).round() / 8)
    applied = verify(ours.model, ours.planned, ours.filled)
    assert all(layer.base_replaced for layer in applied.structure.pairs.values())


def test_another_base_and_an_offset_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="no use for offset"):
        case(base("llama"), Rounded("separate"))


def test_the_scheme_sees_each_layers_own_evidence() -> None:
    seen = {}

    class Witness(Noise):
        def factors(self, target, weight, rank, scaling, evidence, generator) -> Factors:
            seen[target.name] = evidence
            return super().factors(target, weight, rank, scaling, evidence, generator)

    targets, _, adapted = installed(base("llama"))
    first = targets[0]
    told: list[str] = []
    initialise(
        adapted,
        Witness(),
        targets,
        {first.name: Evidence(gradient=torch.ones(first.shape), num_tokens=7)},
        seed=0,
        progress=lambda target: told.append(target.name),
    )
    assert seen[first.name].num_tokens == 7
    assert torch.equal(seen[first.name].gradient, torch.ones(first.shape))
    assert seen[targets[1].name].gradient is None
    assert told == [target.name for target in targets]


def test_a_layers_generator_depends_on_the_seed_and_on_its_name_and_on_nothing_else() -> None:
    def draw(seed: int, name: str) -> list[float]:
        return torch.rand(4, generator=generator_for(seed, name)).tolist()

    assert draw(0, "a") == draw(0, "a")
    assert len({tuple(draw(seed, name)) for seed in (0, 1) for name in ("a", "b")}) == 4
