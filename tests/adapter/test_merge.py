"""Merging gives the base's own dtype, whatever the run computed in: each weight is the exact sum, rounded once."""

import json
from pathlib import Path

import pytest
import torch
from adapter_models import MODELS, Noise, OneSided, Principal, base, case, logits, train
from peft import PeftModel
from safetensors.torch import load_file
from test_adalora import SETTINGS, adaptive
from test_initialise import Rounded

from lab.adapter.delta import merged, trained_base
from lab.adapter.export import export
from lab.adapter.layer import adapted_layers
from lab.layer import weight_of

BF16, F32 = torch.bfloat16, torch.float32
SCHEMES = {
    "separate": (Principal("separate"), {}),
    "fold": (Principal("fold"), {}),
    "none": (Noise(), {}),
    "dora": (OneSided(), {"use_dora": True}),
    "replaced": (Rounded(), {}),
}
DTYPES = [(F32, BF16), (F32, F32), (BF16, BF16), (BF16, F32)]


def trained(model: str, scheme: str, computed: torch.dtype, stored: torch.dtype):
    """A model trained in one dtype on a base that is held in another."""
    made, asked = SCHEMES[scheme]
    ours = case(base(model, stored).to(computed), made, **asked)
    train(ours.model)
    return ours


def exact_sums(folder: Path, home: torch.nn.Module) -> dict[str, torch.Tensor]:
    """W + s B A of each module in float64, from the folder's files alone; with DoRA, in the lengths it holds."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors, found = load_file(folder / "adapter_model.safetensors"), {}
    for key in (key for key in tensors if key.endswith("lora_A.weight")):
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        A, B = tensors[key].double(), tensors[key.replace("lora_A", "lora_B")].double()
        pattern = "^" + name.replace(".", r"\.")
        rank = config["rank_pattern"].get(pattern, config["r"])
        scaling = config["alpha_pattern"].get(pattern, config["lora_alpha"]) / rank
        total = weight_of(home.get_submodule(name)).double() + scaling * B @ A
        if config["use_dora"]:
            length = tensors[key.replace("lora_A.weight", "lora_magnitude_vector")].double()
            total *= (length / total.norm(dim=1))[:, None]
        found[name] = total
    return found


def assert_nearest(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Correctly rounded, but for float64's own rounding of the sums, which may tip one number in millions."""
    nearest = exact.to(found.dtype)
    assert (found != nearest).sum() <= 1
    torch.testing.assert_close(found, nearest, rtol=torch.finfo(found.dtype).eps, atol=0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("stored", "computed"), DTYPES)
def test_a_merged_weight_is_the_exact_sum_in_the_bases_own_dtype(model, scheme, stored, computed, tmp_path) -> None:
    ours = trained(model, scheme, computed, stored)
    export(ours.model, tmp_path)
    home = base(model, stored)
    if scheme == "replaced":
        home = trained_base(ours.model, home)
    whole = merged(ours.model, base(model, stored))
    sums = exact_sums(tmp_path, home)
    assert sums.keys() == set(ours.plan)
    pristine = base(model, stored).state_dict()
    for key, tensor in whole.state_dict().items():
        name, _, leaf = key.rpartition(".")
        if name in sums and leaf == "weight":
            assert_nearest(weight_of(whole.get_submodule(name)), sums[name])
        else:
            assert torch.equal(tensor, pristine[key])
        assert tensor.dtype == stored


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_float32_base_trained_on_in_bf16_merges_to_what_stock_peft_gives_on_it(model, scheme, tmp_path) -> None:
    ours = trained(model, scheme, BF16, F32)
    export(ours.model, tmp_path)
    home = base(model)
    if scheme == "replaced":
        home = trained_base(ours.model, home)
    expected = logits(PeftModel.from_pretrained(home, tmp_path).eval())
    found = logits(merged(ours.model, base(model)))
    # Logits of about 10 in float32, weights summed before the products or after; a merge in bf16 is 0.1 off and more.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (expected - logits(base(model))).abs().max() > 0.1


def test_what_adalora_cut_is_not_merged() -> None:
    model, ranks = adaptive(SETTINGS)
    with torch.no_grad():
        for i, layer in enumerate(ranks.layers.values()):
            layer.B.normal_(generator=torch.Generator().manual_seed(i))
            layer.E[0] = 0.5  # the other three stay 0
    whole, pristine = merged(model, base("llama")), base("llama")
    for name, layer in adapted_layers(model).items():
        kept = 0.5 * layer.s * layer.B[:, :1].double() @ layer.A[:1].double()
        assert_nearest(whole.get_submodule(name).weight, pristine.get_submodule(name).weight.double() + kept)


@pytest.mark.parametrize(("stored", "computed"), DTYPES)
def test_a_replaced_base_is_saved_in_a_dtype_that_holds_both_the_old_weights_and_the_new(stored, computed) -> None:
    ours = trained("llama", "replaced", computed, stored)
    home = trained_base(ours.model, base("llama", stored))
    assert home.dtype == (F32 if F32 in (stored, computed) else BF16)
    before = base("llama", stored).state_dict()
    for key, tensor in home.state_dict().items():
        name = key.removesuffix(".weight")
        own = ours.model.get_base_model().get_submodule(name).base_layer.weight if name in ours.plan else before[key]
        assert torch.equal(tensor, own.to(home.dtype))


def test_the_live_model_is_left_alone() -> None:
    ours = trained("llama", "fold", BF16, F32)
    before = {key: tensor.clone() for key, tensor in ours.model.state_dict().items()}
    merged(ours.model, base("llama"))
    trained_base(ours.model, base("llama"))
    assert all(torch.equal(tensor, before[key]) for key, tensor in ours.model.state_dict().items())
