"""Tiny models, a PiSSA-like scheme and a scatter of ranks for the tests of this folder."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

from lab.adapter.build import build, planned, scaling_factor
from lab.adapter.initialise import Initialised, initialise
from lab.init import Factors
from lab.layer import Target, find_targets
from lab.structure import Offset, Structure

GQA: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama": LlamaConfig(num_hidden_layers=2, **GQA),
    "qwen2": Qwen2Config(num_hidden_layers=2, tie_word_embeddings=True, **GQA),  # q, k, v with a bias
    "qwen3": Qwen3Config(num_hidden_layers=2, head_dim=8, **GQA),
    "gpt2": GPT2Config(
        vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    ),
}  # fmt: skip
MODELS = list(CONFIGS)
TOKENS = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(5))


@dataclass(frozen=True)
class Principal:
    """PiSSA's factors (arXiv 2404.02948), exact: s B A is the best approximation of W at this rank."""

    offset: Offset = "separate"
    needs: frozenset = frozenset()

    def factors(self, target, weight, rank, scaling, evidence, generator) -> Factors:
        U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
        root = (S[:rank] / scaling).sqrt()
        return Factors(
            root[:, None] * Vh[:rank], U[:, :rank] * root, self.offset, info={"captured": float(S[:rank].sum())}
        )


@dataclass(frozen=True)
class Noise:
    """Both factors random, so that the function moves at step 0."""

    offset: Offset = "none"
    needs: frozenset = frozenset()

    def factors(self, target, weight, rank, scaling, evidence, generator) -> Factors:
        out, inner = target.shape
        A = torch.randn(rank, inner, generator=generator) / math.sqrt(inner)
        return Factors(A, torch.randn(out, rank, generator=generator) * 0.1, self.offset)


@dataclass(frozen=True)
class OneSided(Noise):
    """B = 0, so that the function does not move."""

    def factors(self, target, weight, rank, scaling, evidence, generator) -> Factors:
        made = super().factors(target, weight, rank, scaling, evidence, generator)
        return Factors(made.A, torch.zeros_like(made.B))


def base(name: str, dtype: torch.dtype = torch.float32, layers: int = 2) -> nn.Module:
    """A random base in eval mode, the same at every call."""
    config = copy.deepcopy(CONFIGS[name])
    config.num_hidden_layers = layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = AutoModelForCausalLM.from_config(config)
        for parameter in net.parameters():
            if parameter.dim() > 1:  # larger than the 0.02 of transformers, so that layers matter beside embeddings
                parameter.data.mul_(5)
    return net.to(dtype).eval()


def uneven(targets: list[Target]) -> dict[str, int]:
    """Ranks 1 to 5 in turn."""
    return {target.name: 1 + i % 5 for i, target in enumerate(targets)}


@dataclass
class Case:
    """An initialised model and what was asked of it."""

    model: Any
    targets: list[Target]
    plan: dict[str, int]
    scaling: float
    filled: Initialised
    planned: Structure

    @property
    def structure(self) -> Structure:
        """What was planned, with the offsets that the scheme asked for."""
        return self.filled.applied_to(self.planned)


def installed(net: nn.Module, *, plan=None, rank=4, alpha=6.0, scaling="alpha_over_r", dropout=0.0, use_dora=False):
    """The targets, the plan, and the model with random adapters."""
    targets = find_targets(net)
    plan = plan or uneven(targets)
    structure = planned(targets, plan, scaling=scaling_factor(alpha, rank, scaling), use_dora=use_dora)
    return targets, plan, build(net, structure, dropout).eval()


def case(net: nn.Module, scheme: Any = None, *, seed: int = 0, **asked: Any) -> Case:
    """Installed and initialised, in eval mode."""
    targets, plan, model = installed(net, **asked)
    filled = initialise(model, scheme or Principal(), targets, {}, seed=seed)
    s = scaling_factor(asked.get("alpha", 6.0), asked.get("rank", 4), asked.get("scaling", "alpha_over_r"))
    return Case(
        model, targets, plan, s, filled, planned(targets, plan, scaling=s, use_dora=asked.get("use_dora", False))
    )


def train(model: Any, steps: int = 3, lr: float = 0.05) -> None:
    """A few optimizer steps on random tokens, large enough to move the logits."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
    model.eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=TOKENS).logits
