import math

import pytest
import torch
from torch import Generator

from lab.errors import UsageError
from lab.init.random import Random
from lab.layer import Evidence, Target

TARGET = Target("layer", "mlp", 0, (64, 96), False)


def fill(distribution, filled, rank=8, seed=0, gain=1.0):
    init = Random(distribution=distribution, filled=filled, gain=gain)
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


@pytest.mark.parametrize("distribution", ["kaiming", "gaussian"])
@pytest.mark.parametrize("filled", ["A", "B"])
def test_the_gain_multiplies_the_noise_and_nothing_else(distribution, filled):
    one, two = fill(distribution, filled), fill(distribution, filled, gain=2.0)
    assert torch.equal(two.A, 2 * one.A)
    assert torch.equal(two.B, 2 * one.B)


@pytest.mark.parametrize("gain", [0.0, -1.0, math.inf, math.nan])
def test_a_gain_that_is_no_size_is_refused(gain):
    with pytest.raises(UsageError, match=f"init.gain={gain} is not positive and finite"):
        Random(distribution="kaiming", filled="A", gain=gain)


def test_a_run_of_before_there_was_a_gain_has_one_of_1():
    assert Random(distribution="kaiming", filled="A") == Random(distribution="kaiming", filled="A", gain=1.0)


def test_reports_name_a_gain():
    labels = [Random(distribution="kaiming", filled=filled, gain=gain).label for filled in "AB" for gain in (1.0, 2.0)]
    assert labels == ["random", "random[gain 2]", "random[B]", "random[B, gain 2]"]
