"""A model that is not as planned stops the run: one broken fact at a time."""

from collections.abc import Callable

import pytest
import torch
from adapter_models import MODELS, Case, Noise, OneSided, Principal, base, case, installed, train
from peft import LoraConfig
from torch import nn

from lab.adapter.build import planned
from lab.adapter.initialise import delta_norm, initialise
from lab.adapter.layer import LowRankLinear, adapted_layers
from lab.adapter.verify import Applied, verify
from lab.errors import Mismatch
from lab.structure import LayerForm, Structure

UP = "model.layers.1.mlp.up_proj"
SCALING = 1.5  # alpha 6 over rank 4


def check(ours: Case) -> Applied:
    return verify(ours.model, ours.planned, ours.filled)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("offset", ["separate", "fold", "none"])
def test_what_was_applied_is_counted_from_the_live_model(model: str, offset: str) -> None:
    ours, pristine = case(base(model), Principal(offset), dropout=0.1), base(model)
    applied = check(ours)
    cost = sum(ours.plan[target.name] * sum(target.shape) for target in ours.targets)
    frozen = sum(p.numel() for p in pristine.parameters()) + (cost if offset != "none" else 0)
    layers = adapted_layers(ours.model).values()
    total = sum(float((layer.s * layer.B @ layer.A).norm()) ** 2 for layer in layers) ** 0.5
    assert applied == Applied(
        structure=Structure(
            {name: LayerForm("delta", rank=rank, scaling=SCALING, offset=offset) for name, rank in ours.plan.items()}
        ),
        modules_initialised=len(ours.targets),
        trainable_params=cost,
        total_params=frozen + cost,
        delta_norm=pytest.approx(total, rel=1e-5),
        budget_used=cost,
    )


def test_dora_is_read_back_too() -> None:
    ours = case(base("llama"), OneSided(), use_dora=True)
    applied = check(ours)
    assert applied.trainable_params == applied.budget_used + sum(target.shape[0] for target in ours.targets)


def up(ours: Case) -> LowRankLinear:
    return adapted_layers(ours.model)[UP]


def unwrap(ours: Case) -> None:
    ours.model.get_base_model().model.layers[1].mlp.up_proj = up(ours).base_layer


def wrap_head(ours: Case) -> None:
    net = ours.model.get_base_model()
    net.lm_head = LowRankLinear(net.lm_head, "default", LoraConfig(r=2), r=2, lora_alpha=2)


def shrink(ours: Case) -> None:
    layer = up(ours)
    layer.lora_A["default"].weight = nn.Parameter(layer.A.detach()[:-1])
    layer.lora_B["default"].weight = nn.Parameter(layer.B.detach()[:, :-1])


def to_bf16(ours: Case) -> None:
    up(ours).lora_A["default"].weight = nn.Parameter(up(ours).A.detach().bfloat16())


def nudge(tensor: torch.Tensor) -> None:
    with torch.no_grad():
        tensor.view(-1)[3] += 1e-3


def drop_offset(ours: Case) -> None:
    up(ours).offset = "none"
    up(ours).offset_A = up(ours).offset_B = None


def lose_offset_pair(ours: Case) -> None:
    up(ours).offset_A = None


FAULTS: dict[str, tuple[Callable[[Case], object], str]] = {
    "a layer without adapter": (unwrap, f"{UP} was targeted, but has no adapter"),
    "an adapter nobody asked for": (wrap_head, "lm_head was not targeted, but has an adapter"),
    "a wrong rank": (lambda c: setattr(c, "planned", c.planned.changed(UP, rank=9)), f"{UP}: the rank is ., asked 9"),
    "a rank that is only stated": (shrink, f"{UP}: the shape of A is"),
    "a wrong scaling": (lambda c: up(c).scaling.__setitem__("default", 0.5), f"{UP}: the scaling is 0.5, asked 1.5"),
    "a skipped layer": (lambda c: nn.init.zeros_(up(c).B), f"{UP}: the digest of A and B is"),
    "one changed number": (lambda c: nudge(up(c).A), f"{UP}: the digest of A and B is"),
    "a factor in half precision": (to_bf16, f"{UP}: the dtype of A is torch.bfloat16, asked torch.float32"),
    "a frozen factor": (lambda c: up(c).A.requires_grad_(False), f"{UP}: A.requires_grad is False"),
    "no offset": (drop_offset, f"{UP}: the offset is none, asked separate"),
    "half an offset": (lose_offset_pair, f"{UP}: an offset pair present is False, asked True"),
    "an offset that trains": (lambda c: up(c).offset_B.requires_grad_(True), f"{UP}: offset_B.requires_grad is True"),
    "another offset": (lambda c: nudge(up(c).offset_A), f"{UP}: the digest of the offset pair is"),
    "a base that trains": (
        lambda c: up(c).base_layer.weight.requires_grad_(True), r"up_proj\.base_layer\.weight is trainable"
    ),
    "an embedding that trains": (
        lambda c: c.model.get_input_embeddings().weight.requires_grad_(True), r"embed_tokens\.weight is trainable"
    ),
    "another dropout": (
        lambda c: up(c).lora_dropout.update({"default": nn.Dropout(0.5)}), f"{UP}: the dropout is 0.5, asked 0.1"
    ),
    "adapters switched off": (lambda c: c.model.base_model.disable_adapter_layers(), "A.requires_grad is False"),
    "adapters merged": (lambda c: c.model.merge_adapter(), "the list of merged adapters is"),
    "dora that nobody gets": (
        lambda c: setattr(c, "planned", c.planned.changed(UP, dora=True)), f"{UP}: DoRA is False, asked True"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_its_module_named(fault: str) -> None:
    ours = case(base("llama"), dropout=0.1)
    check(ours)
    inject, said = FAULTS[fault]
    inject(ours)
    with pytest.raises(Mismatch, match=said):
        check(ours)


def test_an_offset_nobody_asked_for_is_found() -> None:
    ours = case(base("llama"), Noise())
    up(ours).set_offset("separate", up(ours).A, up(ours).B)
    with pytest.raises(Mismatch, match=f"{UP}: the offset is separate, asked none"):
        check(ours)


def test_a_fold_that_was_not_made_is_found() -> None:
    ours = case(base("llama"), Principal("fold"))
    up(ours).base_layer.weight.data.copy_(base("llama").get_submodule(UP).weight)
    with pytest.raises(Mismatch, match=f"{UP}: the digest of the base weight is"):
        check(ours)


def test_a_layer_skipped_while_initialising_is_found() -> None:
    targets, plan, model = installed(base("llama"))
    filled = initialise(model, Principal(), [target for target in targets if target.name != UP], {}, seed=0)
    with pytest.raises(Mismatch, match=f"{UP} was never initialised"):
        verify(model, planned(targets, plan, scaling=1.5), filled)


def test_a_fault_on_many_modules_says_on_how_many() -> None:
    ours = case(base("llama"))
    for layer in adapted_layers(ours.model).values():
        layer.scaling["default"] = 3.0
    with pytest.raises(Mismatch, match=r"q_proj: the scaling is 3.0, asked 1.5 \(and on 13 more of 14 modules\)"):
        check(ours)


def test_a_trained_pair_is_no_longer_the_initial_one() -> None:
    ours = case(base("llama"))
    train(ours.model, steps=1)
    with pytest.raises(Mismatch, match="the digest of A and B"):
        check(ours)


def test_the_norm_needs_no_product() -> None:
    A, B = torch.randn(3, 20), torch.randn(30, 3)
    assert delta_norm(A, B, 0.5) == pytest.approx(0.5 * float((B @ A).norm()), rel=1e-5)
    assert delta_norm(A, torch.zeros(30, 3), 0.5) == 0
