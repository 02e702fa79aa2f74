"""Muon for matrices and AdamW for the rest, in one optimizer: one state dict, one schedule."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

FUSED = ("cpu", "cuda")  # devices for which torch has one kernel for the whole of AdamW
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al., "Muon", 2024
STEPS = 5


def orthogonalise(update: Tensor) -> Tensor:
    """Roughly the polar factor U Vᵀ of an update (out, in), by five Newton-Schulz steps in float32.

    The coefficients trade exactness for speed: singular values end between about 0.7 and 1.2 (Jordan et al., 2024).
    """
    x = update.float()
    wide = x.T if x.shape[0] > x.shape[1] else x
    wide = wide / (wide.norm() + 1e-7)
    steps = _through_the_gram if wide.shape[1] >= 2 * wide.shape[0] else _directly
    wide = steps(wide)
    return (wide.T if x.shape[0] > x.shape[1] else wide).to(update.dtype)


def _directly(wide: Tensor) -> Tensor:
    """X ← a X + (b G + c G²) X with G = X Xᵀ, five times."""
    a, b, c = NEWTON_SCHULZ
    for _ in range(STEPS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide


def _through_the_gram(wide: Tensor) -> Tensor:
    """The same for (m, n), n ≥ 2m, in m x m products but for the first and the last.

    Every step multiplies X from the left by P = a I + b G + c G², and G by P²; these commute, so that the product of
    the P's is gathered and meets X once.
    """
    a, b, c = NEWTON_SCHULZ
    gram = wide @ wide.T
    gathered: Tensor | None = None
    for step in range(STEPS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        gathered = factor if gathered is None else factor @ gathered
        if step < STEPS - 1:
            gram = factor @ gram @ factor
    assert gathered is not None
    return gathered @ wide


class MuonAdamW(torch.optim.Optimizer):
    """Each parameter group carries `kind: muon | adamw`.

    Muon: m ← β m + (1 − β) g, Nesterov, W ← (1 − lr·wd) W − lr √max(1, out/in) · orthogonalise (Jordan et al., 2024);
    β rises linearly from `momentum_start` to `momentum` over `momentum_warmup_steps` (nanochat).
    AdamW: Loshchilov & Hutter, arXiv:1711.05101, torch's own kernel.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        warm_up = {"momentum_start": 0.0, "momentum_warmup_steps": 0, "taken": 0}
        super().__init__(groups, {"kind": "adamw", "lr": 0.0, "weight_decay": 0.0, "fused": False, **warm_up})
        for group in self.param_groups:  # `fused` also tells torch where a loaded step count belongs
            group["fused"] = group["kind"] == "adamw" and all(p.device.type in FUSED for p in group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of every group."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["kind"] == "muon":
                for parameter in parameters:
                    self._muon(parameter, group)
            elif parameters:
                self._adamw(parameters, group)
            group["taken"] += 1
        return loss

    def _muon(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum, beta = state["momentum"], _momentum(group)
        momentum.lerp_(gradient, 1 - beta)
        direction = orthogonalise(gradient.lerp(momentum, beta))
        out, inner = parameter.shape
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"] * max(1.0, out / inner) ** 0.5)

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                step = torch.zeros((), dtype=torch.float32, device=parameter.device if group["fused"] else "cpu")
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] |= {"step": step, **moments}
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _momentum(group: dict[str, Any]) -> float:
    """Muon's β at the step about to be taken."""
    if group["taken"] >= group["momentum_warmup_steps"]:
        return float(group["momentum"])
    share = group["taken"] / group["momentum_warmup_steps"]
    return float((1 - share) * group["momentum_start"] + share * group["momentum"])
