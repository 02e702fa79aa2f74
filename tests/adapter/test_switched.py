"""The switched layer in a real model: in its place, whole, rebuilt from plain types, and dense for everyone else."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from lab.adapter.build import build, trained_in_full
from lab.adapter.read import check_structure, read
from lab.adapter.structured import Structured
from lab.adapter.switched import SwitchedLinear, dense, install, install_full, switched_layers, why_not
from lab.errors import Mismatch
from lab.structure import LayerForm, Structure
from lab.training.optim import make_adamw

UP, Q = "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"
LOW = LayerForm("low_rank", rank=3, scaling=0.5, since=4)
FADING = LayerForm("fading", rank=3, scaling=2.0, step=0.7, since=9)
DELTA = LayerForm("delta", rank=5, scaling=1.0, since=0)
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.fixture
def net():
    from lab import config
    from lab.config import instantiate

    return instantiate.make(config.compose("model=micro").model).load(torch.float32, 0).eval()


def filled(layer, weight, fade=1.0):
    """A pair drawn at random, and what it leaves of a weight."""
    with torch.no_grad():
        for factor in (layer.A, layer.B):
            factor.copy_(torch.randn(factor.shape) / 10)
        if layer.E is not None:
            layer.E.copy_(weight - layer.scaling * layer.B @ layer.A)
        if layer.fade is not None:
            layer.fade.fill_(fade)
    return layer


@pytest.mark.parametrize("form", [FADING, DELTA], ids=lambda form: form.form)
def test_a_layer_with_all_its_residual_acts_as_the_weight_did_and_so_does_the_way_back(form, net):
    logits = net(input_ids=IDS).logits
    weight = net.get_submodule(UP).weight.detach()
    filled(install(net, UP, form), weight)
    scale = logits.abs().max()
    assert (net(input_ids=IDS).logits - logits).abs().max() <= 1e-6 * scale
    install_full(net, UP)
    assert type(net.get_submodule(UP)) is nn.Linear
    assert (net(input_ids=IDS).logits - logits).abs().max() <= 1e-6 * scale


def test_its_output_is_the_formula():
    layer = SwitchedLinear(FADING, (6, 4), nn.Parameter(torch.randn(6)), "cpu")
    filled(layer, torch.randn(6, 4), fade=0.25)
    x = torch.randn(2, 3, 4)
    weight = 2.0 * layer.B @ layer.A + 0.25 * layer.E
    assert torch.allclose(layer(x), x @ weight.T + layer.bias, atol=1e-6)
    assert torch.allclose(layer.weight_now(), weight, atol=1e-6)


def test_the_order_of_parameters_is_that_of_the_weights_they_replace(net):
    before = [name for name, _ in net.named_parameters()]
    install(net, UP, LOW)
    after = [name for name, p in net.named_parameters() if p.requires_grad]
    place = before.index(f"{UP}.weight")
    assert after[place : place + 2] == [f"{UP}.A", f"{UP}.B"]
    assert after[:place] + after[place + 2 :] == before[:place] + before[place + 1 :]


def test_a_structure_of_plain_types_rebuilds_every_form_and_is_read_back(net):
    structure = trained_in_full(net)
    for name, form in ((UP, LOW), (Q, FADING)):
        structure = structure.changed(name, **vars(form))
    again = Structure.from_plain(structure.to_plain())
    built = build(net, again)
    assert read(built) == structure
    assert list(switched_layers(built)) == [UP, Q]
    trains = {name for name, p in built.named_parameters() if p.requires_grad}
    assert f"{Q}.E" not in trains
    assert f"{Q}.fade" not in trains
    assert {f"{UP}.A", f"{UP}.B", "model.norm.weight"} <= trains


def test_another_structure_of_the_same_run_is_restored_with_its_weights(net):
    """What `select=best` asks: layers may have gone low-rank, changed rank, or come back since."""
    model = Structured(net, trained_in_full(net), {})
    filled(install(net, UP, FADING), torch.randn(176, 64))
    model.change(UP, FADING)
    best, weights = model.saved_structure(), {key: value.clone() for key, value in model.state_dict().items()}
    logits = net(input_ids=IDS).logits
    install_full(net, UP)
    model.change(UP, LayerForm("full"))
    filled(install(net, Q, LOW), None)
    model.change(Q, LOW)
    model.restore(best, weights)
    assert torch.equal(net(input_ids=IDS).logits, logits)
    assert list(model.structure.switched) == [UP]


def test_files_of_stock_transformers_hold_a_dense_model_and_the_run_goes_on_with_its_own(net, tmp_path):
    filled(install(net, UP, FADING), torch.randn(176, 64), fade=0.5)
    layer, logits = net.get_submodule(UP), net(input_ids=IDS).logits
    with dense(net):
        net.save_pretrained(tmp_path)
    assert net.get_submodule(UP) is layer
    stock = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert (stock(input_ids=IDS).logits - logits).abs().max() <= 1e-6 * logits.abs().max()


def test_an_optimizer_made_for_a_rebuilt_model_holds_its_parameters_in_the_order_of_the_edited_one(net):
    from lab import config

    install(net, UP, LOW)
    optim = config.compose("method=full").optim
    names = make_adamw(net, optim, torch.device("cpu")).param_groups[0]["param_names"]
    assert names == [name for name, p in net.named_parameters() if p.requires_grad]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda layer: layer.A.requires_grad_(False), "A.requires_grad is False, asked True"),
        (lambda layer: layer.E.requires_grad_(True), "E.requires_grad is True, asked False"),
        (lambda layer: setattr(layer, "B", nn.Parameter(torch.zeros(176, 2))), "the rank of B is 2, asked 3"),
    ],
)
def test_a_switched_layer_that_is_not_whole_is_named(change, found, net):
    structure = trained_in_full(net).changed(UP, **vars(FADING))
    built = build(net, structure)
    change(built.get_submodule(UP))
    with pytest.raises(Mismatch, match=f"{UP}.*{found}"):
        check_structure(built, structure)


def test_what_cannot_switch_is_refused_with_the_reason(net):
    tied = net.get_output_embeddings()
    net.model.layers[1].mlp.up_proj = net.model.layers[0].mlp.up_proj
    net.model.layers[0].mlp.down_proj = Conv1D(64, 176)
    assert tied.weight is net.get_input_embeddings().weight
    assert "tied to model.embed_tokens.weight" in why_not(net, "lm_head")
    assert f"shared: it stands in the model as {UP} and model.layers.1" in why_not(net, UP)
    assert "is a Conv1D" in why_not(net, "model.layers.0.mlp.down_proj")
    assert why_not(net, Q) is None
