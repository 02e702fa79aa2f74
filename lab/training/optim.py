"""The optimizer and the learning-rate schedule."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from lab.config import Optim, Schedule
from lab.errors import Mismatch
from lab.training.muon import MuonAdamW
from lab.training.pairs import Pair

WARMDOWN = 0.2  # share of the steps


def make_optimizer(
    net: nn.Module,
    optim: Optim,
    device: torch.device,
    fast: Collection[nn.Parameter] = (),
    dtype: torch.dtype = torch.float32,
) -> torch.optim.Optimizer:
    """The optimizer that the config asks for, over the trainable parameters in module order.

    `fast` as in make_adamw; Muon's products are of `dtype`.
    """
    return make_adamw(net, optim, device, fast) if optim.matrix_lr is None else make_muon(net, optim, dtype)


def make_muon(net: Any, optim: Optim, dtype: torch.dtype = torch.float32) -> MuonAdamW:
    """Muon over the matrices of the blocks; AdamW over vectors, embeddings and output head, each at its own rate.

    A tied head is an embedding. Where `lr_width` is set, AdamW's rates are for that width and scale with
    (width / lr_width)^-1/2 (nanochat, `gpt.py`, October 2025).
    """
    embeddings = {id(p) for module in net.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    head = net.get_output_embeddings() if hasattr(net, "get_output_embeddings") else None
    heads = {id(p) for p in head.parameters()} - embeddings if head is not None else set()
    scale = (net.config.hidden_size / optim.lr_width) ** -0.5 if optim.lr_width is not None else 1.0
    adamw = {
        "kind": "adamw",
        "betas": tuple(optim.betas),
        "eps": optim.eps,
        "weight_decay": optim.weight_decay,
    }
    groups: list[dict[str, Any]] = [
        {"params": [], "lr": scale * optim.rate, **adamw},
        {"params": [], "lr": scale * (optim.rate if optim.embedding_lr is None else optim.embedding_lr), **adamw},
        {"params": [], "lr": scale * (optim.rate if optim.head_lr is None else optim.head_lr), **adamw},
        {
            "params": [],
            "kind": "muon",
            "lr": optim.matrix_lr,
            "momentum": optim.momentum,
            "momentum_start": optim.momentum_start,
            "momentum_warmup_steps": optim.momentum_warmup_steps,
            "weight_decay": optim.weight_decay,
        },
    ]
    for parameter in net.parameters():
        if parameter.requires_grad:
            outside = 1 if id(parameter) in embeddings else 2 if id(parameter) in heads else None
            groups[outside or (3 if parameter.ndim == 2 else 0)]["params"].append(parameter)
    return MuonAdamW([group for group in groups if group["params"]], dtype)


def set_pairs(optimizer: torch.optim.Optimizer, pairs: Sequence[Pair]) -> None:
    """Tell Muon which of its matrices are pairs in a weight's place; AdamW steps each factor by itself."""
    if isinstance(optimizer, MuonAdamW):
        optimizer.pairs = pairs


def verify_trained(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raises Mismatch where the optimizer does not hold each parameter that trains exactly once, and no other."""
    trained = {id(parameter): name for name, parameter in net.named_parameters() if parameter.requires_grad}
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    absent = [name for key, name in trained.items() if key not in held]
    if absent:
        raise Mismatch(f"{absent[0]} trains and is not in the optimizer ({len(absent)} of {len(trained)} parameters).")
    if len(held) != len(trained):
        raise Mismatch(f"the optimizer holds {len(held)} parameters, and {len(trained)} train.")


def make_adamw(
    net: nn.Module, optim: Optim, device: torch.device, fast: Collection[nn.Parameter] = ()
) -> torch.optim.AdamW:
    """Fused AdamW over the trainable parameters, in module order; `fast` ones at lora_plus_ratio times the rate."""
    keys = {id(parameter) for parameter in fast} if optim.lora_plus_ratio != 1 else set()
    plain: list[tuple[str, nn.Parameter]] = []
    faster: list[tuple[str, nn.Parameter]] = []
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            (faster if id(parameter) in keys else plain).append((name, parameter))
    groups = [{"params": plain, "lr": optim.rate}]
    if faster:
        groups.append({"params": faster, "lr": optim.rate * optim.lora_plus_ratio})
    return torch.optim.AdamW(
        groups,
        lr=optim.rate,
        betas=(optim.betas[0], optim.betas[1]),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


def total_steps(schedule: Schedule, steps_per_epoch: int) -> int:
    """Optimizer steps of the run: whichever of max_steps and max_epochs ends first."""
    ends = [schedule.max_steps] if schedule.max_steps is not None else []
    if schedule.max_epochs is not None:
        ends.append(schedule.max_epochs * steps_per_epoch)
    return min(ends)


def make_lr_lambda(schedule: Schedule, total_steps: int) -> "LrFactor":
    """The factor on the learning rate at a step."""
    return LrFactor(schedule.lr_scheduler, schedule.warmup_steps, total_steps)


class LrFactor:
    """Linear warm-up from 1/(warmup+1), then constant, or linear or cosine decay to 0 one step past the end.

    `warmdown` is constant, then linear to 0 over the last WARMDOWN of the steps (nanochat).
    """

    def __init__(self, kind: str, warmup: int, total: int) -> None:
        self.kind, self.warmup, self.total = kind, warmup, total

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.kind == "constant":
            return 1.0
        if self.kind == "warmdown":
            return min(1.0, (self.total - step) / max(1.0, WARMDOWN * self.total))
        progress = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return 1 - progress if self.kind == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
