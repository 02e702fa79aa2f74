"""Weights, gradients and updates of a real, short NanoChat run at the widths of depth 4, 12 and 20."""

import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import NanoChatConfig, NanoChatForCausalLM

from lab.bench.device import Stopwatch
from lab.training.muon import orthogonalise

TOKENS = 512  # per step, as the seed
LR = 0.02  # the seed's, for Muon
EVERY = 20


@dataclass(frozen=True)
class Snapshot:
    """A tick of the run."""

    step: int
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]
    updates: dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One width."""

    depth: int  # whose width it is
    blocks: int  # that were trained; a block more adds layers, not shapes
    snapshots: list[Snapshot]
    step_seconds: float  # of an optimizer step, with a vocabulary of 256 bytes, as the bench counts them

    @property
    def layers(self) -> int:
        """Matrices per tick."""
        return len(self.snapshots[0].weights)


def train(depth: int, blocks: int, ticks: int, device: torch.device) -> Case:
    """Train blocks of width 64 · depth from nanochat's initialisation on the bytes of Python's own library."""
    torch.manual_seed(0)
    width = 64 * depth
    heads = max(1, width // 128)
    config = NanoChatConfig(
        vocab_size=256, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=TOKENS,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    net = NanoChatForCausalLM(config).to(device)
    matrices = {name: weight for name, weight in net.named_parameters() if weight.ndim == 2 and ".layers." in name}
    for name, weight in matrices.items():
        out, inner = weight.shape
        torch.nn.init.normal_(weight, std=min(1, (out / inner) ** 0.5) / inner**0.5)
        if name.endswith(("o_proj.weight", "fc2.weight")):
            torch.nn.init.zeros_(weight)
    rest = [weight for name, weight in net.named_parameters() if name not in matrices]
    adamw = torch.optim.AdamW(rest, lr=3e-3, weight_decay=0.0)
    momentum: dict[str, Tensor] = {}
    text = _library_bytes()
    snapshots: list[Snapshot] = []
    watch = Stopwatch(device, time.thread_time)
    watch.start()
    for step in range(EVERY * ticks + 1):
        start = int(torch.randint(len(text) - TOKENS, ()))
        tokens = text[start : start + TOKENS][None].to(device)
        net.zero_grad()
        net(input_ids=tokens, labels=tokens).loss.backward()
        due = step % EVERY == 0 and step > 0
        before = {name: weight.detach().clone() for name, weight in matrices.items()} if due else {}
        gradients = {name: _gradient(weight).clone() for name, weight in matrices.items()} if due else {}
        adamw.step()
        for name, weight in matrices.items():
            _muon(weight, momentum.setdefault(name, torch.zeros_like(weight)))
        if due:
            updates = {name: matrices[name].detach() - old for name, old in before.items()}
            snapshots.append(Snapshot(step, before, gradients, updates))
    return Case(depth, blocks, snapshots, watch.stop() / (EVERY * ticks + 1))


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad


@torch.no_grad()
def _muon(weight: Tensor, momentum: Tensor) -> None:
    """A step along the orthogonalised momentum (Jordan et al. 2024), as the seed takes it."""
    gradient = _gradient(weight)
    momentum.lerp_(gradient, 0.05)
    (direction,) = orthogonalise([gradient.lerp(momentum, 0.95)], torch.float32)
    weight.sub_(direction, alpha=LR * max(1, weight.shape[0] / weight.shape[1]) ** 0.5)


def _library_bytes() -> Tensor:
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:80]
    return torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8).long()
