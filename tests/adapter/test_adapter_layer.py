"""The adapted forward, against stock peft and against the base."""

import copy

import pytest
import torch
from adapter_models import MODELS, TOKENS, Noise, OneSided, Principal, base, case, logits, train
from peft import LoraConfig, get_peft_model

from lab.adapter.layer import LowRankLinear, adapted_layers


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_an_offset_the_forward_is_stock_pefts(model: str, dtype: torch.dtype) -> None:
    ours = case(base(model, dtype), Noise())
    stock = get_peft_model(
        base(model, dtype), LoraConfig(target_modules="all-linear", r=8, fan_in_fan_out=model == "gpt2")
    ).eval()
    for name, layer in adapted_layers(ours.model).items():
        twin = stock.get_base_model().get_submodule(name)
        twin.lora_A["default"].weight = torch.nn.Parameter(layer.A.detach().clone())
        twin.lora_B["default"].weight = torch.nn.Parameter(layer.B.detach().clone())
        twin.scaling["default"] = layer.s
    # fp32: s is applied before B here and after it there. bf16: peft's pair is float32 and ours is not: A, B and
    # what is between them are rounded to 8 bits in each of 14 layers: a few ulps (2^-8) of logits near 1.
    tolerance = 2e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(logits(ours.model), logits(stock), rtol=tolerance, atol=tolerance)
    assert (logits(ours.model) - logits(base(model, dtype))).abs().max() > 0.1


@pytest.mark.parametrize("model", MODELS)
def test_gradients_are_stock_pefts(model: str) -> None:
    ours = case(base(model), Noise())
    stock = get_peft_model(base(model), LoraConfig(target_modules="all-linear", fan_in_fan_out=model == "gpt2")).eval()
    twins = {}
    for name, layer in adapted_layers(ours.model).items():
        twins[name] = stock.get_base_model().get_submodule(name)
        twins[name].lora_A["default"].weight = torch.nn.Parameter(layer.A.detach().clone())
        twins[name].lora_B["default"].weight = torch.nn.Parameter(layer.B.detach().clone())
        twins[name].scaling["default"] = layer.s
    for net in (ours.model, stock):
        net(input_ids=TOKENS, labels=TOKENS).loss.backward()
    for name, layer in adapted_layers(ours.model).items():
        for mine, theirs in ((layer.A, twins[name].lora_A), (layer.B, twins[name].lora_B)):
            theirs_grad = theirs["default"].weight.grad
            # fp32 sums in another order, through two blocks of backward.
            torch.testing.assert_close(mine.grad, theirs_grad, rtol=1e-4, atol=1e-5 * float(theirs_grad.abs().max()))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_step_0_with_a_separate_offset_is_bitwise_the_base(model: str, dtype: torch.dtype, mode: str) -> None:
    expected = logits(base(model, dtype))
    adapted = case(base(model, dtype), dropout=0.3).model
    adapted.train(mode == "train")  # one dropout mask serves both pairs, so they cancel under dropout too
    assert torch.equal(logits(adapted), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_step_0_is_bitwise_the_base_under_autocast(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = logits(base("llama", dtype))
        assert torch.equal(logits(case(base("llama", dtype), dropout=0.3).model.train()), expected)


@pytest.mark.parametrize("model", MODELS)
def test_switching_the_adapters_off_is_bitwise_the_base_also_after_training(model: str) -> None:
    expected = logits(base(model))
    adapted = case(base(model), dropout=0.1).model
    train(adapted)
    assert (logits(adapted) - expected).abs().max() > 0.1
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), expected)
    assert not any(layer.offset_A.requires_grad for layer in adapted_layers(adapted).values())


def test_training_leaves_base_and_offset_as_they_were() -> None:
    adapted = case(base("llama"), dropout=0.1).model
    frozen = {name: p.clone() for name, p in adapted.named_parameters() if not p.requires_grad}
    moving = {name: p.clone() for name, p in adapted.named_parameters() if p.requires_grad}
    train(adapted)
    now = dict(adapted.named_parameters())
    assert all(torch.equal(now[name], before) for name, before in frozen.items())
    assert all(not torch.equal(now[name], before) for name, before in moving.items())


@pytest.mark.parametrize("scheme", [Noise("separate"), Noise()], ids=["separate", "none"])
def test_what_bfloat16_rounds_is_a_share_of_what_is_added(scheme: Noise) -> None:
    ours = case(base("llama", torch.bfloat16), scheme)
    layer = next(iter(adapted_layers(ours.model).values()))
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad():
        layer.A.mul_(1.01)  # so that a separate pair no longer cancels
        layer.B.mul_(1.01)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        found = layer(x)
        u = x.double() @ layer.A.double().T
        delta, size = layer.s * u @ layer.B.double().T, layer.s * u.abs() @ layer.B.double().abs().T
        if scheme.offset == "separate":  # 1.01² of a product less the product
            delta, size = (each * 0.0201 / 1.0201 for each in (delta, size))
        expected = layer.base_layer(x).double() + delta
    assert found.dtype == torch.bfloat16
    # The result is rounded to 8 bits, 2⁻⁸ of it; its two factors and what is between them were before: 3 x 2⁻⁸ of the
    # sum of what is added up. With an offset that is the change of the pair, a fiftieth of it: float32's own 2⁻²⁴ of
    # the pair, in which the change is taken, is below 2⁻¹⁷ of that.
    error = (found.double() - expected).abs()
    assert (error <= expected.abs() * 2**-8 + 3 * 2**-8 * size).all()
    if scheme.offset == "none":
        assert (error > expected.abs() * 2**-8 + 1e-6).any(), "it is not float32"


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_any_number_of_leading_sides_goes_through_in_bfloat16(shape: tuple[int, ...]) -> None:
    layer = next(iter(adapted_layers(case(base("llama", torch.bfloat16), Noise()).model).values()))
    x = torch.randn(*shape[:-1], layer.in_features, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad():
        rows = layer(x.reshape(-1, layer.in_features))
        assert torch.equal(layer(x), rows.reshape(*shape[:-1], -1))


def test_nothing_is_computed_for_disabled_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = case(base("llama")).model
    monkeypatch.setattr(LowRankLinear, "factors", lambda self: pytest.fail("the pair was asked for"))
    with adapted.disable_adapter():
        logits(adapted)


def test_gradient_checkpointing_gives_the_same_gradients_under_dropout() -> None:
    found = []
    for checkpointed in (False, True):
        net = base("llama")
        if checkpointed:
            net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        adapted = case(net, dropout=0.2).model.train()
        torch.manual_seed(3)
        adapted(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
        found.append({name: p.grad for name, p in adapted.named_parameters() if p.requires_grad})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("offset", ["separate", "fold", "none"])
def test_pefts_own_merge_and_unmerge_take_the_offset_along(model: str, offset: str) -> None:
    adapted = case(base(model), Principal(offset)).model
    train(adapted)
    expected = logits(adapted)
    adapted.merge_adapter()
    torch.testing.assert_close(logits(adapted), expected, rtol=1e-4, atol=1e-4)  # fp32, weights summed first
    adapted.unmerge_adapter()
    torch.testing.assert_close(logits(adapted), expected, rtol=1e-4, atol=1e-4)


def test_a_deep_copy_computes_the_same_and_shares_nothing() -> None:
    ours = case(base("llama"))
    train(ours.model)
    twin = copy.deepcopy(ours.model)
    assert torch.equal(logits(twin), logits(ours.model))
    assert {p.data_ptr() for p in twin.parameters()}.isdisjoint(p.data_ptr() for p in ours.model.parameters())


def test_dora_is_pefts_and_starts_at_the_base() -> None:
    adapted = case(base("llama"), OneSided(), use_dora=True).model
    # B = 0, so the magnitude is the row norms of the weight and the function does not move, to fp32 rounding.
    torch.testing.assert_close(logits(adapted), logits(base("llama")), rtol=1e-4, atol=1e-4)
    train(adapted)
    assert (logits(adapted) - logits(base("llama"))).abs().max() > 0.1


def test_every_target_got_our_layer_whichever_way_its_weight_is_stored() -> None:
    for model in MODELS:
        ours = case(base(model))
        layers = adapted_layers(ours.model)
        assert list(layers) == [target.name for target in ours.targets]
        assert all(isinstance(layer, LowRankLinear) for layer in layers.values())
        assert all(layer.fan_in_fan_out == (model == "gpt2") for layer in layers.values())
