"""The optimizer and the learning-rate schedule."""

import math
from typing import Any

import torch
from torch import nn

from lab.config import Optim, Schedule
from lab.training.muon import MuonAdamW


def make_optimizer(net: nn.Module, optim: Optim, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer that the config asks for, over the trainable parameters in module order."""
    return make_adamw(net, optim, device) if optim.matrix_lr is None else make_muon(net, optim)


def make_muon(net: Any, optim: Optim) -> MuonAdamW:
    """Muon over the matrices of the blocks, AdamW over embeddings, output head and vectors."""
    outside = {id(p) for module in net.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    head = net.get_output_embeddings() if hasattr(net, "get_output_embeddings") else None
    outside |= {id(p) for p in head.parameters()} if head is not None else set()
    trainable = [p for p in net.parameters() if p.requires_grad]
    matrices = [p for p in trainable if p.ndim == 2 and id(p) not in outside]
    inside = {id(p) for p in matrices}
    rest = [p for p in trainable if id(p) not in inside]
    shared = {"weight_decay": optim.weight_decay}
    adamw = {"kind": "adamw", "lr": optim.lr, "betas": tuple(optim.betas), "eps": optim.eps, **shared}
    muon = {"kind": "muon", "lr": optim.matrix_lr, "momentum": optim.momentum, **shared}
    return MuonAdamW([{"params": rest, **adamw}, {"params": matrices, **muon}])


def make_adamw(net: nn.Module, optim: Optim, device: torch.device) -> torch.optim.AdamW:
    """Fused AdamW over the trainable parameters, in module order; B trains at lora_plus_ratio times the rate of A."""
    plain: list[tuple[str, nn.Parameter]] = []
    faster: list[tuple[str, nn.Parameter]] = []
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            (faster if "lora_B" in name and optim.lora_plus_ratio != 1 else plain).append((name, parameter))
    groups = [{"params": plain, "lr": optim.lr}]
    if faster:
        groups.append({"params": faster, "lr": optim.lr * optim.lora_plus_ratio})
    return torch.optim.AdamW(
        groups,
        lr=optim.lr,
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
    """Linear warm-up from 1/(warmup+1), then constant, or linear or cosine decay to 0 one step past the end."""

    def __init__(self, kind: str, warmup: int, total: int) -> None:
        self.kind, self.warmup, self.total = kind, warmup, total

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.kind == "constant":
            return 1.0
        progress = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return 1 - progress if self.kind == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
