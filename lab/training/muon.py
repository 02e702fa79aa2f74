"""Muon for matrices and AdamW for the rest, in one optimizer: one state dict, one schedule."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al., "Muon", 2024
STEPS = 5


def orthogonalise(update: Tensor) -> Tensor:
    """Roughly the polar factor U Vᵀ of an update (out, in), by five Newton-Schulz steps in float32.

    The coefficients trade exactness for speed: singular values end between about 0.7 and 1.2 (Jordan et al., 2024).
    """
    a, b, c = NEWTON_SCHULZ
    x = update.float()
    wide = x.T if x.shape[0] > x.shape[1] else x
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(STEPS):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide.T if x.shape[0] > x.shape[1] else wide).to(update.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """Each parameter group carries `kind: muon | adamw`.

    Muon: m ← β m + (1 − β) g, Nesterov, W ← (1 − lr·wd) W − lr √max(1, out/in) · orthogonalise (Jordan et al., 2024).
    AdamW: Loshchilov & Hutter, arXiv:1711.05101.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"kind": "adamw", "lr": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of every group."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self._muon if group["kind"] == "muon" else self._adamw
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update(parameter, parameter.grad, group)
        return loss

    def _muon(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum, beta = state["momentum"], group["momentum"]
        momentum.lerp_(gradient, 1 - beta)
        direction = orthogonalise(gradient.lerp(momentum, beta))
        out, inner = parameter.shape
        parameter.add_(direction, alpha=-group["lr"] * max(1.0, out / inner) ** 0.5)

    def _adamw(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        state["step"] += 1
        first, second = group["betas"]
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        correction = (1 - second ** state["step"]) ** 0.5
        denominator = (state["exp_avg_sq"].sqrt() / correction).add_(group["eps"])
        parameter.addcdiv_(state["exp_avg"], denominator, value=-group["lr"] / (1 - first ** state["step"]))
