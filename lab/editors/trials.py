"""Trials of layers at a rank, on the step's last micro-batches: made, measured and undone to the bit."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from lab.editors.factoring import split_for
from lab.ledger import Trial
from lab.spectral.outside import outside
from lab.svd_policy.switching import Switching


class Trials:
    """Puts what a layer would come to in its place, takes the loss, and puts its own weight back.

    It draws nothing, and every process makes the same ones, since the loss is over all of them.
    """

    def __init__(self, net: nn.Module, policy: Switching, loss: Callable[[], float | None]) -> None:
        self.net, self.policy, self.loss = net, policy, loss

    @torch.no_grad()
    def __call__(self, asked: Mapping[str, int], optimizer: torch.optim.Optimizer) -> dict[str, Trial]:
        """A trial of each layer that trains in full at a rank, one after the other."""
        before = _finite(self.loss()) if asked else None
        return {name: self._one(name, rank, before, optimizer) for name, rank in asked.items()}

    def _one(self, name: str, rank: int, before: float | None, optimizer: torch.optim.Optimizer) -> Trial:
        module: Any = self.net.get_submodule(name)
        weight, form = module.weight, self.policy.tried_form
        split = split_for(form, self.policy.start, weight.detach(), optimizer.state.get(weight, {}), rank, name)
        share = None if weight.grad is None else outside(weight.grad, split.B, split.A)
        if form == "delta":  # the function stays as it is
            return Trial(rank, before, before, share)
        kept = weight.detach().clone()
        weight.copy_((split.B @ split.A).float())
        after = self.loss()
        weight.copy_(kept)
        return Trial(rank, before, _finite(after), share)


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None
