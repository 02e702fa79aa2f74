"""Outlook of a run: what low rank in its targets could bring at most, and what its policy's schedule would."""

from dataclasses import dataclass
from typing import Any

import torch

from lab.config import Optim
from lab.instruments.targets import SpectralTargets
from lab.svd_policy.bound import Bound, Prospect, StepFlops, amdahl, prospect
from lab.svd_policy.switching import Switching
from lab.training.loader import BatchPlan
from lab.training.muon import MuonAdamW, orthogonalise_flops
from lab.training.optim import make_optimizer


@dataclass(frozen=True)
class Outlook:
    """What arithmetic says before the first step."""

    bound: Bound
    prospect: Prospect | None  # None for a policy that foresees no switch in the run


def outlook(
    chosen: SpectralTargets,
    skeleton: Any,
    optim: Optim,
    dtype: torch.dtype,
    batches: BatchPlan,
    total_steps: int,
    devices: int,
) -> Outlook:
    """The outlook of a run on these batches; `skeleton` is its model without weights, `dtype` of Muon's products."""
    each = batches.lengths / batches.steps_per_epoch / devices
    tokens, squares = float(each.sum()), float((each * batches.lengths).sum())
    shapes = {target.name: target.shape for target in chosen.targets}
    orthogonal = muon_shapes(skeleton, optim) if chosen.trains_base else []

    def muon_of(shape: tuple[int, int]) -> float:
        return orthogonalise_flops(shape, dtype) if orthogonal else 0.0

    step = StepFlops(
        targets={target.name: chosen.flops_of(target.shape[0] * target.shape[1], tokens) for target in chosen.targets},
        weights=chosen.step_flops(tokens),
        scores=6 * attention_width(skeleton) * squares,
        muon=sum(map(muon_of, orthogonal)),
        muon_of=muon_of,
    )
    policy = chosen.policy
    planned = prospect(policy, shapes, step, total_steps) if isinstance(policy, Switching) else None
    return Outlook(amdahl(shapes, step, skeleton.num_parameters()), planned)


def attention_width(skeleton: Any) -> int:
    """Channels of queries, summed over layers; 0 for a model without attention.

    A token's causal products with keys and values are this times the length of its text: over half of the positions
    each, so that a whole text of T tokens takes 2 T² of it in FLOPs forward, and twice that backward.
    """
    config = skeleton.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if heads is None:
        return 0
    per_head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(heads * per_head * config.num_hidden_layers)


def muon_shapes(skeleton: Any, optim: Optim) -> list[tuple[int, int]]:
    """Of the matrices that the optimizer orthogonalises; empty under AdamW."""
    optimizer = make_optimizer(skeleton, optim, torch.device("meta"))
    if not isinstance(optimizer, MuonAdamW):
        return []
    held = (p for group in optimizer.param_groups if group["kind"] == "muon" for p in group["params"])
    return [(p.shape[0], p.shape[1]) for p in held]
