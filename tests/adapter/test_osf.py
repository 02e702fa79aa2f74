"""peft's OSF as a form of layers: what is kept, what trains, what an optimizer leaks all the same, and the way out."""

import copy

import pytest
import torch
from adapter_models import base
from peft import OSFConfig, inject_adapter_in_model
from torch import nn

from lab import config
from lab.adapter.build import build
from lab.adapter.osf import install_osf, leak, leaks, osf_layers
from lab.adapter.read import check_structure, read
from lab.adapter.switched import dense
from lab.editors.start import switchable
from lab.errors import Mismatch, UsageError
from lab.layer import find_targets
from lab.run.setup import full_structure
from lab.structure import LayerForm, Structure
from lab.svd_policy.osf import Osf

K, SHAPES = 5, ((48, 40), (40, 48), (40, 40))  # both of peft's ways to project, and the one where neither is stored


def osf(**changes):
    settings = {"every_n_steps": None, "target_modules": "all-linear", "log_layers": 0}
    return Osf(**settings | {"effective_rank": None, "train_others": False} | changes)


def kept_layer(shape, make, steps=20, seed=0):
    """An OSF layer after steps on random gradients of its factors, and the weight it began with."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.ModuleDict({"a": nn.Linear(shape[1], shape[0], bias=False)})
    with torch.no_grad():
        net["a"].weight.copy_(torch.randn(shape, generator=generator))
    install_osf(net, {"a": K})
    optimizer = make([p for p in net.parameters() if p.requires_grad])
    for _ in range(steps):
        x = torch.randn(16, shape[1], generator=generator)
        target = torch.randn(16, shape[0], generator=generator)
        optimizer.zero_grad()
        (net["a"](x) - target).square().mean().backward()
        optimizer.step()
    return net["a"], net["a"].get_base_layer().weight.detach().double()


def on_kept(change, W):
    """Independent of ours: by explicit projectors, the share of a change that touches the kept directions."""
    U, _, Vh = torch.linalg.svd(W)
    here, there = torch.eye(len(W)).double(), torch.eye(W.shape[1]).double()
    free = (here - U[:, :K] @ U[:, :K].T) @ change @ (there - Vh[:K].T @ Vh[:K])
    return float((change - free).square().sum() / change.square().sum())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_adamw_leaks_into_what_is_kept_and_a_plain_gradient_step_does_not(shape):
    layer, W = kept_layer(shape, lambda p: torch.optim.SGD(p, lr=0.1))
    change = layer.get_delta_weight("default").detach().double()
    assert change.square().mean().sqrt() > 1e-3 * W.square().mean().sqrt(), "it moved"
    assert on_kept(change, W) < 1e-6  # float32's factors, of a change of a hundredth of the weight
    layer, W = kept_layer(shape, lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.0))
    change = layer.get_delta_weight("default").detach().double()
    assert leak(layer) == pytest.approx(on_kept(change, W), rel=1e-3)  # peft's own sum rounds in float32
    assert leak(layer) > 1e-3


def test_a_layer_that_has_not_moved_has_no_leak():
    layer, _ = kept_layer((48, 40), lambda p: torch.optim.SGD(p, lr=0.0), steps=1)
    assert leak(layer) is None


@pytest.mark.parametrize("others", [False, True])
def test_the_model_at_step_0_is_the_base_and_only_what_is_asked_trains(others):
    net, ids = base("llama"), torch.arange(12).unsqueeze(0)
    before, targets = net(ids).logits, {target.name for target in find_targets(net)}
    structure = full_structure(net, osf(effective_rank=7, train_others=others))
    asked = copy.deepcopy(structure)
    build(net, structure)
    assert check_structure(net, asked) == asked
    assert {layer.kept for layer in structure.layers.values()} == ({7, None} if others else {7})
    assert targets == set(osf_layers(net))
    assert torch.allclose(net(ids).logits, before, atol=1e-5)
    full = {name for name, p in net.named_parameters() if p.requires_grad and "osf_svd_params" not in name}
    assert all("norm" in name or "embed" in name or "lm_head" in name for name in full)
    assert bool(full) == others


def test_a_dense_copy_is_what_pefts_own_merge_gives():
    net = base("llama")
    build(net, full_structure(net, osf()))
    for layer in osf_layers(net).values():
        for factor in layer.osf_svd_params.parameters():
            factor.data.mul_(1.1)
    ids = torch.arange(12).unsqueeze(0)
    acted = net(ids).logits
    with dense(net):
        assert not osf_layers(net)
        state = {name: value.clone() for name, value in net.state_dict().items()}
    assert osf_layers(net), "and it goes on training as it was"
    for layer in osf_layers(net).values():
        layer.merge()
    plain = base("llama")
    assert state.keys() == plain.state_dict().keys()
    plain.load_state_dict(state)
    assert torch.allclose(plain(ids).logits, acted, atol=1e-5)
    for name, layer in osf_layers(net).items():
        assert torch.allclose(state[f"{name}.weight"], layer.get_base_layer().weight, atol=1e-6)


def test_a_layer_whose_factors_were_frozen_is_a_mismatch():
    net = base("llama")
    build(net, full_structure(net, osf()))
    name, layer = next(iter(osf_layers(net).items()))
    layer.osf_svd_params["default"]["U_low"].requires_grad_(False)
    with pytest.raises(Mismatch, match=f"{name}: default.U_low.requires_grad is False, asked True"):
        read(net)


def test_a_structure_survives_plain_types_and_says_what_is_kept():
    structure = Structure({"a": LayerForm("osf", kept=7), "b": LayerForm("full")})
    assert Structure.from_plain(structure.to_plain()) == structure
    assert structure.to_plain()["a"] == {"form": "osf", "kept": 7}
    assert (structure.kept, structure.pairs, structure.switched, structure.ranks) == ({"a": 7}, {}, {}, {})


def test_directions_kept_are_those_that_peft_keeps():
    for asked in (None, 1, 7, 0.5, 0.3):
        net = nn.ModuleDict({"a": nn.Linear(40, 48)})
        peft = inject_adapter_in_model(OSFConfig(target_modules=["a"], effective_rank=asked), net)
        assert peft["a"].effective_rank["default"] == osf(effective_rank=asked).kept("a", (48, 40))
        assert leaks(peft)["a"]["kept"] == peft["a"].effective_rank["default"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (0, "effective_rank=0 is no number of directions"),
        (-3, "effective_rank=-3 is no number"),
        (2.5, "effective_rank=2.5 is no number"),
        (40, "keeps 40 of the 40 directions of a (48x40), and some must be kept and some train; give 1 to 39"),
        (0.01, "keeps 0 of the 40"),
        (float("nan"), "effective_rank=nan is no number"),
        (float("inf"), "effective_rank=inf is no number"),
        ("half", "effective_rank='half' is no number"),
        (True, "effective_rank=True is no number"),
    ],
)
def test_a_number_of_directions_that_leaves_none_is_refused(asked, says):
    with pytest.raises(UsageError) as refused:
        osf(effective_rank=asked).kept("a", (48, 40))
    assert says in str(refused.value)


def test_osf_is_for_layers_that_train_in_full():
    asked = config.compose("svd_policy=osf", "method=full")
    assert asked.svd_policy["effective_rank"] is None
    with pytest.raises(UsageError, match="acts on layers that train in full, and method=lora has none"):
        switchable(base("llama"), osf(), torch.float32, True, 10)
    with pytest.raises(UsageError, match="keeps 1000 of the"):
        switchable(base("llama"), osf(effective_rank=1000), torch.float32, False, 10)
