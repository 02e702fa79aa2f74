"""Every layer gets the rank it was given and the one scaling that was asked."""

import math
import random
import warnings

import pytest
import torch
from adapter_models import GQA, MODELS, base, installed, uneven
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from lab.adapter.build import build, planned, scaling_factor
from lab.adapter.layer import adapted_layers
from lab.errors import UsageError
from lab.layer import find_targets


def test_the_scaling_is_what_its_papers_say() -> None:
    assert scaling_factor(32, 16, "alpha_over_r") == 2.0
    assert scaling_factor(32, 16, "rslora") == 8.0
    assert scaling_factor(32, 16, "constant") == 32


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scaling", ["alpha_over_r", "rslora", "constant"])
def test_an_uneven_plan_has_its_ranks_and_one_scaling(model: str, scaling: str) -> None:
    _, plan, adapted = installed(base(model), rank=5, alpha=7.0, scaling=scaling)
    layers = adapted_layers(adapted)
    assert {name: layer.r["default"] for name, layer in layers.items()} == plan
    assert {name: layer.A.shape[0] for name, layer in layers.items()} == plan
    asked = {"alpha_over_r": 7 / 5, "rslora": 7 / math.sqrt(5), "constant": 7}[scaling]
    assert all(math.isclose(layer.s, asked, rel_tol=1e-12) for layer in layers.values())


def test_layers_1_and_layers_11_are_not_confused() -> None:
    """An unescaped, unanchored `layers.1` also matches `layers.11`, and a suffix any longer name that ends in it."""
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(LlamaConfig(num_hidden_layers=12, **GQA))
    targets = find_targets(net)
    draw = random.Random(0)
    plan = {target.name: draw.randint(1, 16) for target in targets}
    adapted = build(net, planned(targets, plan, scaling=1.0))
    assert {name: layer.r["default"] for name, layer in adapted_layers(adapted).items()} == plan


class Twins(nn.Module):
    """A module whose whole name is the ending of another's, and one a dot away from a third."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8)])
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList([nn.Linear(8, 8)])
        self.layers_0 = nn.Linear(8, 8)
        self.config = LlamaConfig(**GQA)

    def prepare_inputs_for_generation(self) -> None: ...


@pytest.mark.parametrize("left_out", [None, "layers.0", "encoder.layers.0", "layers_0"])
def test_names_that_end_alike_are_not_confused(left_out: str | None) -> None:
    net = Twins()
    targets = [target for target in find_targets(net) if target.name != left_out]
    plan = uneven(targets)
    adapted = build(net, planned(targets, plan, scaling=1.0))
    assert {name: layer.r["default"] for name, layer in adapted_layers(adapted).items()} == plan


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_factors_train_and_they_are_float32(dtype: torch.dtype) -> None:
    _, _, adapted = installed(base("llama", dtype))
    trainable = {id(p) for p in adapted.parameters() if p.requires_grad}
    assert trainable == {id(p) for layer in adapted_layers(adapted).values() for p in (layer.A, layer.B)}
    assert all(p.dtype == torch.float32 for p in adapted.parameters() if p.requires_grad)
    assert all(p.dtype == dtype for p in adapted.parameters() if not p.requires_grad)


def test_installing_draws_nothing_from_the_global_generator() -> None:
    net = base("llama")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    installed(net)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("model", MODELS)
def test_installing_warns_of_nothing(model: str) -> None:
    net = base(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`")  # peft asks transformers by an old name
        installed(net)


def test_a_plan_that_is_not_one_rank_per_target_is_refused() -> None:
    targets = find_targets(base("llama"))
    whole = dict.fromkeys((target.name for target in targets), 4)
    first = targets[0].name
    for plan, said in (
        ({name: rank for name, rank in whole.items() if name != first}, f"lacks.*{first}"),
        ({**whole, "lm_head": 4}, "adds.*lm_head"),
        ({**whole, first: 0}, f"rank 0 for {first}.*outside 1 to 32"),
        ({**whole, first: 33}, f"rank 33 for {first}.*outside 1 to 32"),
    ):
        with pytest.raises(UsageError, match=said):
            installed(base("llama"), plan=plan)
    with pytest.raises(UsageError, match="alpha=0"):
        installed(base("llama"), alpha=0)
