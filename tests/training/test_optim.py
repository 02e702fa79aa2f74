"""The optimizers against torch's own and against what their papers promise."""

import pytest
import torch
from torch import nn

from lab import config
from lab.config import instantiate
from lab.training import muon
from lab.training.muon import MuonAdamW, orthogonalise
from lab.training.optim import LrFactor, make_optimizer

KINDS = ("muon", "adamw")


@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96)])
def test_orthogonalise_flattens_the_spectrum_and_keeps_the_frame(shape):
    generator = torch.Generator().manual_seed(0)
    update = torch.randn(shape, generator=generator)
    u, _, vh = torch.linalg.svd(update, full_matrices=False)
    (found,) = orthogonalise([update], torch.float32)
    core = u.T @ found @ vh.T
    values = core.diagonal()
    assert (core - torch.diag(values)).abs().max() < 1e-3
    # Jordan et al.: the quintic takes singular values to about [0.7, 1.2]; tiny ones need more than five steps
    large = torch.linalg.svdvals(update) > 0.05 * torch.linalg.matrix_norm(update, 2)
    assert ((values > 0.6) & (values < 1.3))[large].all()


def test_the_adamw_part_is_torchs_adamw():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    one = MuonAdamW([{"params": list(ours.parameters()), "kind": "adamw", **settings}])
    other = torch.optim.AdamW(theirs.parameters(), **settings)
    x, y = torch.randn(16, 5), torch.randn(16, 3)
    for _ in range(20):
        for net, optimizer in ((ours, one), (theirs, other)):
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            optimizer.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest():
    settings = config.compose("model=micro", "method=full", "optim=muon")
    net = instantiate.make(settings.model).load(torch.float32, 0)
    optimizer = make_optimizer(net, settings.optim, torch.device("cpu"))
    kinds = {kind: [p for g in optimizer.param_groups if g["kind"] == kind for p in g["params"]] for kind in KINDS}
    assert len(kinds["muon"]) == 2 * 7
    assert all(p.ndim == 2 for p in kinds["muon"])
    embedding = net.get_input_embeddings().weight
    assert any(p is embedding for p in kinds["adamw"])
    assert sum(len(params) for params in kinds.values()) == len(list(net.parameters()))


def test_the_learning_rate_warms_up_and_decays():
    linear = LrFactor("linear", warmup=4, total=14)
    assert [linear(k) for k in range(4)] == [0.2, 0.4, 0.6, 0.8]
    assert linear(4) == 1.0
    assert linear(9) == pytest.approx(0.5)
    assert linear(14) == 0.0
    assert LrFactor("cosine", 0, 10)(5) == pytest.approx(0.5)
    assert LrFactor("constant", 0, 10)(9) == 1.0
    warmdown = LrFactor("warmdown", 0, 100)
    assert [warmdown(k) for k in (0, 80, 90, 100)] == pytest.approx([1.0, 1.0, 0.5, 0.0])


def test_nanochats_groups_train_at_nanochats_rates():
    settings = config.compose("model=nanochat_d4_8k", "method=full", "optim=nanochat")
    net = instantiate.make(settings.model).load(torch.float32, 0)
    embedding, head, matrices = make_optimizer(net, settings.optim, torch.device("cpu")).param_groups
    wider = (768 / 256) ** 0.5
    assert [group["lr"] for group in (embedding, head, matrices)] == pytest.approx([0.2 * wider, 0.004 * wider, 0.02])
    assert embedding["params"] == [net.get_input_embeddings().weight]
    assert head["params"] == [net.lm_head.weight]
    assert len(matrices["params"]) == 24


def test_muons_momentum_rises_to_its_end():
    weight = nn.Parameter(torch.zeros(4, 4))
    warm_up = {"momentum": 0.95, "momentum_start": 0.85, "momentum_warmup_steps": 2, "lr": 0.0}
    optimizer = MuonAdamW([{"params": [weight], "kind": "muon", **warm_up}])
    expected = torch.zeros(4, 4)
    for step, beta in enumerate((0.85, 0.90, 0.95, 0.95)):
        weight.grad = torch.full((4, 4), float(step + 1))
        expected = beta * expected + (1 - beta) * weight.grad
        optimizer.step()
        assert torch.allclose(optimizer.state[weight]["momentum"], expected, atol=1e-6)


SHAPES = [(64, 64), (96, 32), (32, 96), (96, 32), (33, 65), (8, 8)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_of_muon_is_torchs_own(dtype):
    """torch.optim.Muon works in bfloat16, whose products are off by 2^-8; five steps of them by a few per cent."""
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    one = MuonAdamW([{"params": ours, "kind": "muon", **settings, "momentum_start": 0.9}], dtype)
    other = torch.optim.Muon(theirs, nesterov=True, adjust_lr_fn="original", **settings)
    for _ in range(3):
        before = [p.detach().clone() for p in ours]
        for mine, their in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            their.grad = mine.grad.clone()
        one.step()
        other.step()
        for mine, their, was in zip(ours, theirs, before, strict=True):
            step = mine.detach() - was
            assert (mine - their).norm() < 0.04 * step.norm()
            their.data.copy_(mine.data)


def test_updates_of_one_shape_are_taken_together_and_come_back_in_their_places(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    updates = [torch.randn(shape, generator=generator) for shape in SHAPES]
    alone = [orthogonalise([update], torch.bfloat16)[0] for update in updates]
    for largest in (2**26, 2 * 96 * 32):  # all three of 96 x 32 together, and at most two
        monkeypatch.setattr(muon, "LARGEST", largest)
        assert [len(places) for places in muon._batches(updates)] == (
            [1, 3, 1, 1] if largest == 2**26 else [1, 2, 1, 1, 1]
        )
        for mine, expected in zip(orthogonalise(updates, torch.bfloat16), alone, strict=True):
            assert mine.shape == expected.shape
            assert (mine - expected).norm() < 0.02 * expected.norm()  # other kernels round in another order


def test_no_updates_have_no_directions():
    assert orthogonalise([], torch.bfloat16) == []


def test_the_way_through_the_gram_matrix_is_the_direct_one():
    wide = torch.randn(3, 48, 192, generator=torch.Generator().manual_seed(0))
    wide /= wide.norm(dim=(1, 2), keepdim=True)
    # each of five steps may multiply an error of 1e-7 by 3.4 or so, twice over where G is squared
    assert (muon._through_the_gram(wide) - muon._directly(wide)).abs().max() < 1e-4


@pytest.mark.parametrize("ratio", [1.0, 16.0])
def test_B_trains_at_the_ratio_of_lora_plus_times_the_rate_of_A(ratio):
    """arXiv 2402.12354: η_B = λ η_A, and nothing else changes."""
    net = nn.ModuleDict({"A": nn.Linear(4, 2, bias=False), "B": nn.Linear(2, 4, bias=False)})
    settings = config.compose("optim.lr=1e-3", f"optim.lora_plus_ratio={ratio}").optim
    optimizer = make_optimizer(net, settings, torch.device("cpu"), [net["B"].weight])
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(net["A"].weight)] == 1e-3
    assert rates[id(net["B"].weight)] == pytest.approx(ratio * 1e-3)
