import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Generator

from lab.errors import UsageError
from lab.init.loftq import NF4, Loftq, nf4
from lab.layer import Evidence, Target
from lab.testing import example_weight


def loftq(**changes):
    defaults = {"iterations": 1, "block_size": 64, "svd": "exact"}
    return Loftq(**(defaults | {"magnitude": "native", "matched_norm": 0.01, "direction": "scheme"} | changes))


def fill(init, weight, rank=6, scaling=2.0):
    target = Target("layer", "mlp", 0, tuple(weight.shape), False)
    return init.factors(target, weight, rank, scaling, Evidence(), Generator().manual_seed(0))


def quantise(weight, block_size=64):
    """NF4 entry by entry, as a reader of QLoRA's section 3 would write it."""
    flat = weight.flatten().double().numpy()
    out = np.empty_like(flat)
    for start in range(0, len(flat), block_size):
        block = flat[start : start + block_size]
        scale = np.abs(block).max()
        for i, value in enumerate(block):
            out[start + i] = scale * min(NF4, key=lambda code: abs(code - value / scale)) if scale else 0
    return torch.from_numpy(out).view(weight.shape)


def test_the_code_is_the_quantiles_of_a_normal():
    # QLoRA's construction: 8 positive and 7 negative quantiles and 0, scaled to ±1
    offset = 1 - (1 / 30 + 1 / 32) / 2
    positive = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    code = np.sort(np.concatenate([positive, [0.0], negative])) / positive.max()
    assert np.array(NF4) == pytest.approx(code, abs=1e-6)  # the published values are rounded to float32


@pytest.mark.parametrize("shape", [(32, 48), (7, 13)])  # the second does not fill its last block
def test_quantising_agrees_with_the_definition_entry_by_entry(shape):
    weight = torch.randn(shape, generator=Generator().manual_seed(0))
    assert torch.allclose(nf4(weight, 64).double(), quantise(weight), atol=1e-6)
    assert torch.allclose(nf4(weight, 16).double(), quantise(weight, 16), atol=1e-6)


def test_a_block_of_zeros_stays_zero():
    weight = torch.cat([torch.zeros(1, 64), torch.ones(1, 64)])
    assert torch.equal(nf4(weight, 64), weight)


def test_quantising_twice_changes_nothing():
    once = nf4(example_weight((64, 64)), 64)
    assert torch.equal(nf4(once, 64), once)


def test_one_iteration_is_the_best_low_rank_repair_of_the_quantised_base():
    weight = example_weight((72, 40))
    made = fill(loftq(), weight)
    assert torch.allclose(made.base.double(), quantise(weight), atol=1e-6)
    U, S, Vh = torch.linalg.svd(weight - made.base)
    assert torch.allclose(2.0 * made.B @ made.A, (U[:, :6] * S[:6]) @ Vh[:6], atol=1e-6)
    left = float((S[6:] ** 2).sum().sqrt() / weight.norm())
    assert made.info["error_left"] == pytest.approx(left, rel=1e-4)
    assert made.info["error_left"] < made.info["quantisation_error"]
    assert made.offset == "none"


def test_further_iterations_follow_the_papers_alternation():
    weight, scaling = example_weight((72, 40)), 0.5
    made = fill(loftq(iterations=3), weight, scaling=scaling)
    product = torch.zeros_like(weight)
    for _ in range(3):
        base = quantise(weight - product).float()
        U, S, Vh = torch.linalg.svd(weight - base)
        product = (U[:, :6] * S[:6]) @ Vh[:6]
    # an entry that lies on the edge of two code values may fall either way: compare what is left, not each entry
    left = float((weight - base - product).norm() / weight.norm())
    assert made.info["error_left"] == pytest.approx(left, rel=1e-2)
    assert float((weight - made.base - scaling * made.B @ made.A).norm() / weight.norm()) == pytest.approx(
        made.info["error_left"], rel=1e-4
    )


def test_the_controls_leave_the_base_quantised():
    weight = example_weight((72, 40))
    made = fill(loftq(direction="random", magnitude="matched"), weight)
    assert torch.equal(made.base, fill(loftq(), weight).base)


def test_no_iterations_are_refused():
    with pytest.raises(UsageError, match=r"init\.iterations=0"):
        loftq(iterations=0)
