import math

import pytest
import torch
from torch import Generator

from lab.init.random import Random
from lab.layer import Evidence, Target

TARGET = Target("layer", "mlp", 0, (64, 96), False)


def fill(distribution, filled, rank=8, seed=0):
    init = Random(distribution=distribution, filled=filled)
    return init.factors(TARGET, torch.zeros(64, 96), rank, 2.0, Evidence(), Generator().manual_seed(seed))


@pytest.mark.parametrize("distribution", ["kaiming", "gaussian"])
@pytest.mark.parametrize("filled", ["A", "B"])
def test_the_product_is_exactly_zero(distribution, filled):
    made = fill(distribution, filled)
    assert not (made.B @ made.A).any()
    assert made.offset == "none"
    assert (made.A if filled == "A" else made.B).all()


def test_kaiming_is_peft_default_distribution():
    # peft's default is nn.init.kaiming_uniform_(A, a=√5), whose bound is 1/√fan_in
    reference = torch.empty(8, 96)
    torch.nn.init.kaiming_uniform_(reference, a=math.sqrt(5), generator=Generator().manual_seed(0))
    assert torch.allclose(fill("kaiming", "A").A, reference, atol=1e-7)


def test_gaussian_deviation_is_one_over_the_rank():
    A = fill("gaussian", "A", rank=32).A  # 3072 draws: the sample deviation errs by 1/√6144 = 1.3 %
    assert float(A.std()) == pytest.approx(1 / 32, rel=0.05)
    assert abs(float(A.mean())) < 3 / 32 / math.sqrt(3072)


def test_init_b_fans_in_from_the_rank():
    B = fill("kaiming", "B", rank=16).B
    assert 0.9 / 4 < float(B.abs().max()) <= 1 / 4
