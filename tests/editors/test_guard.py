"""A guard on real optimizer steps: what it lets through, what it leaves alone, and that a resumed run guards on."""

from itertools import pairwise

import pytest
import torch
from jobs import run
from killing import differing, start
from torch import nn

from lab import config, ledger
from lab.adapter.structured import Structured
from lab.config import instantiate
from lab.editors.guard import GuardEditor, protected
from lab.structure import Structure
from lab.training.muon import MuonAdamW

K, SHAPE = 5, (48, 40)
SIDES = ("core", "left", "right", "bilateral")


def adamw(weight, lr, decay):
    return torch.optim.AdamW([weight], lr=lr, weight_decay=decay)


def muon(weight, lr, decay):
    group = {"params": [weight], "kind": "muon", "lr": lr, "momentum": 0.95, "weight_decay": decay}
    return MuonAdamW([group])


OPTIMS = {"adamw": (adamw, 5e-3), "muon": (muon, 5e-2)}


def policy(**changes):
    """The guard of its YAML, with a tick at every step unless told otherwise."""
    settings = config.compose("method=full", "svd_policy=guard").svd_policy
    return instantiate.make({**settings, "k": K, "every_n_steps": 1, **changes})


def guarded(make, lr, side, strength=1.0, steps=40, decay=0.1, seed=0):
    """A guarded weight in training on random gradients with a pull along its first directions; each step's weights."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.ModuleDict({"a": nn.Linear(SHAPE[1], SHAPE[0], bias=False)})
    with torch.no_grad():
        net["a"].weight.copy_(torch.randn(SHAPE, generator=generator))
    weight = net["a"].weight
    optimizer = make(weight, lr, decay)
    editor = GuardEditor(Structured(net, Structure(), {}), policy(side=side, strength=strength))
    editor.attach(optimizer)
    editor.asked = lambda: [("a", True)]
    editor.after_step(1, optimizer)
    editor.asked = tuple
    W0 = weight.detach().double().clone()
    pull, seen = 3 * torch.linalg.svd(W0).U[:, :1] @ torch.linalg.svd(W0).Vh[:1], [W0]
    for _ in range(steps):
        weight.grad = torch.randn(SHAPE, generator=generator) + pull.float()
        optimizer.step()
        seen.append(weight.detach().double().clone())
    return editor, W0, seen


def share(change, W0, side):
    """Independent of ours: by explicit projectors."""
    U, _, Vh = torch.linalg.svd(W0)
    P, Q = U[:, :K] @ U[:, :K].T, Vh[:K].T @ Vh[:K]
    here, there = torch.eye(SHAPE[0], dtype=P.dtype), torch.eye(SHAPE[1], dtype=P.dtype)
    part = {"core": P @ change @ Q, "left": P @ change, "right": change @ Q}
    part["bilateral"] = change - (here - P) @ change @ (there - Q)
    return part[side]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("optim", OPTIMS)
def test_a_step_leaks_no_more_than_1e_8_of_its_energy_into_what_is_guarded(optim, side):
    make, lr = OPTIMS[optim]
    editor, W0, seen = guarded(make, lr, side)
    free = guarded(make, lr, side, strength=1e-12)[2]
    for before, after in pairwise(seen):
        change = after - before
        assert change.square().mean().sqrt() >= 1e-3 * before.square().mean().sqrt(), "large enough to be judged"
        assert share(change, W0, side).square().sum() <= 1e-8 * change.square().sum()
    assert share(free[-1] - W0, W0, side).square().sum() > 1e-2 * (free[-1] - W0).square().sum(), "the pull is real"
    account = editor.accounts["a"]
    assert (account.steps, account.steps_below, account.leak_below) == (40, 0, 0.0)
    assert 0 < account.leak <= 1e-8


@pytest.mark.parametrize("optim", OPTIMS)
def test_the_first_guarded_step_is_the_optimizers_own_less_the_guarded_part(optim):
    make, lr = OPTIMS[optim]
    for side in SIDES:
        for strength in (1.0, 0.5):
            _, W0, (_, one) = guarded(make, lr, side, strength=strength, steps=1)
            _, _, (_, free) = guarded(make, lr, side, strength=1e-12, steps=1)
            expected = (free - W0) - strength * share(free - W0, W0, side)
            assert torch.allclose(one - W0, expected, atol=3e-7)  # float32 rounds entries of size up to 4 by 2.4e-7


def test_processes_hear_of_guards_at_steps_with_a_tick_alone(monkeypatch):
    """A tick at step s measures the optimizer step that follows s steps."""
    net = nn.ModuleDict({"a": nn.Linear(SHAPE[1], SHAPE[0], bias=False)})
    editor = GuardEditor(Structured(net, Structure(), {}), policy(every_n_steps=20))
    told = []
    monkeypatch.setattr("lab.editors.guard.from_rank_0", lambda decide: told.append(step) or decide())
    for step in range(1, 62):
        editor.asked = lambda step=step: [("a", step == 21)] if step in (21, 41) else []
        editor.after_step(step, adamw(net["a"].weight, 1e-3, 0.0))
        assert editor.guarded() == ({"a"} if 21 <= step < 41 else set())
        assert bool(editor.events) == (step in (21, 41))
    assert told == [1, 21, 41, 61]


def test_steps_too_small_for_float32_are_reported_apart():
    editor, _, _ = guarded(adamw, 1e-5, "core", decay=0.0)
    account = editor.accounts["a"]
    assert (account.steps_below, account.leak) == (40, 0.0)
    assert 0 < account.leak_below < 1e-4


@pytest.mark.parametrize("side", SIDES)
def test_what_is_protected_is_a_projection(side):
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    U, _, Vh = torch.linalg.svd(torch.randn(SHAPE, generator=generator, dtype=torch.float64), full_matrices=False)
    U, V = U[:, :K], Vh[:K].T
    once = protected(X, U, V, side)
    assert torch.allclose(protected(once, U, V, side), once, atol=1e-12)


FULL = ("method=full", "evaluate.accuracy=false", "evaluate.num_samples=0", "schedule.max_steps=8")
GUARD = (
    *("svd_policy=guard", "svd_policy.every_n_steps=1", "svd_policy.k=4", "svd_policy.warmup_steps=1"),
    *("svd_policy.attack_z=0.5", "svd_policy.attack_lift=1.0", "svd_policy.calm_z=0.2", "svd_policy.calm_patience=2"),
    *("svd_policy.side=left", "svd_policy.cooldown_ticks=1", "schedule.save_every_n_steps=2", "optim.lr=1e-2"),
)


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_a_run_guards_what_is_attacked_reads_it_back_and_a_killed_one_guards_on_to_the_bit(optim, tmp_path):
    overrides = (*FULL, *GUARD, *(("optim=muon",) if optim == "muon" else ()))
    result = run(tmp_path / "whole", *overrides)
    rows = ledger.read(tmp_path / "whole").rows
    modes = {row.mode for row in rows}
    assert modes == {"full", "guard"}
    found = result.spectral["guard"]
    assert found
    assert max(account["leak"] for account in found.values()) <= 1e-8
    assert result.switches == 0, "no layer takes another form by it"
    assert start(tmp_path / "killed", *overrides, kill_before="lab.training.checkpoint:save", call=4) == -9
    run(tmp_path / "killed", *overrides)
    assert differing(tmp_path / "whole", tmp_path / "killed") == []
