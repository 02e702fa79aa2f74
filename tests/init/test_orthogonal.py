import peft
import pytest
import torch
from torch import Generator, nn

from lab.errors import UsageError
from lab.init.orthogonal import Orthogonal
from lab.layer import Evidence, Target

TARGET = Target("layer", "mlp", 0, (200, 300), False)


def fill(rank, seed=0):
    return Orthogonal().factors(TARGET, torch.zeros(200, 300), rank, 2.0, Evidence(), Generator().manual_seed(seed))


def test_the_product_is_zero_and_both_factors_are_not():
    made = fill(8)
    # 8 products of entries near 0.1, each rounded to 6e-8 of itself
    assert float((made.B @ made.A).abs().max()) < 1e-7
    assert float(made.A.abs().mean()) > 0.01
    assert float(made.B.abs().mean()) > 0.01


def test_each_factor_spans_half_of_the_rank():
    made = fill(8)
    assert int(torch.linalg.matrix_rank(made.A, rtol=1e-4)) == 4
    assert int(torch.linalg.matrix_rank(made.B, rtol=1e-4)) == 4


def test_the_sizes_are_pefts():
    net = nn.Sequential(nn.Linear(300, 200, bias=False))
    config = peft.LoraConfig(r=8, target_modules=["0"], init_lora_weights="orthogonal")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = peft.get_peft_model(net, config).base_model.model[0]
    made = fill(8)
    # each norm is over 800 or 1200 draws: it varies by 1/√(2·800) = 2.5 %
    assert float(made.A.norm()) == pytest.approx(float(layer.lora_A["default"].weight.detach().norm()), rel=0.1)
    assert float(made.B.norm()) == pytest.approx(float(layer.lora_B["default"].weight.detach().norm()), rel=0.1)


@pytest.mark.parametrize("rank", [1, 7])
def test_an_odd_rank_is_refused_with_the_even_ones(rank):
    with pytest.raises(UsageError, match=f"rank={rank} for layer is odd.* use {'2' if rank == 1 else '6 or 8'}"):
        fill(rank)
