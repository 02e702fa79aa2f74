import peft
import pytest
import torch
from torch import Generator, nn

from lab.init.olora import Olora
from lab.layer import Evidence, Target
from lab.testing import example_weight


def fill(weight, rank=6, scaling=2.0):
    target = Target("layer", "mlp", 0, tuple(weight.shape), False)
    init = Olora(magnitude="native", matched_norm=0.01, direction="scheme", offset="separate")
    return init.factors(target, weight, rank, scaling, Evidence(), Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(48, 48), (72, 40), (40, 72)])
def test_the_pair_is_pefts(shape):
    weight = example_weight(shape)
    net = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False))
    net[0].weight.data = weight.clone()
    config = peft.LoraConfig(r=6, lora_alpha=12, target_modules=["0"], init_lora_weights="olora")
    layer = peft.get_peft_model(net, config).base_model.model[0]
    made = fill(weight)
    assert torch.allclose(made.A, layer.lora_A["default"].weight, atol=1e-6)
    assert torch.allclose(made.B, layer.lora_B["default"].weight, atol=1e-6)
    assert made.offset == "separate"


def test_the_first_columns_are_reproduced_exactly():
    weight = example_weight((72, 40))
    made = fill(weight)
    assert torch.allclose((made.B @ made.A)[:, :6], weight[:, :6], atol=1e-6)


def test_a_zero_weight_leaves_one_trainable_side():
    made = fill(torch.zeros(40, 40))
    assert not made.A.any()
    assert torch.allclose(made.B.T @ made.B, torch.eye(6), atol=1e-6)
