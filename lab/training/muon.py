"""Muon for matrices and AdamW for the rest, in one optimizer: one state dict, one schedule."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from lab.training.pairs import Pair, whitened_gradients

FUSED = ("cpu", "cuda")  # devices for which torch has one kernel for the whole of AdamW
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al., "Muon", 2024
STEPS = 5
LARGEST = 2**26  # elements of matrices that are orthogonalised together


def orthogonalise(updates: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Roughly the polar factor U Vᵀ of each update (out, in), by five Newton-Schulz steps in a dtype; float32.

    The coefficients trade exactness for speed: singular values end between about 0.7 and 1.2 (Jordan et al., 2024).
    Updates of one shape, or its transpose, are taken together, but for float32 on a CPU, which gains nothing by it.
    """
    directions: dict[int, Tensor] = {}
    alone = dtype == torch.float32 and all(update.device.type == "cpu" for update in updates)
    for places in [[i] for i in range(len(updates))] if alone else _batches(updates):
        tall = [updates[i].shape[0] > updates[i].shape[1] for i in places]
        wide = torch.stack([updates[i].T if t else updates[i] for i, t in zip(places, tall, strict=True)]).float()
        wide = (wide / (torch.linalg.vector_norm(wide, dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
        through = _through_the_gram if _is_oblong(wide.shape[1], wide.shape[2], dtype) else _directly
        wide = through(wide).float()
        directions |= {i: x.T if t else x for i, t, x in zip(places, tall, wide, strict=True)}
    return [directions[i] for i in range(len(updates))]


def orthogonalise_flops(shape: tuple[int, int], dtype: torch.dtype) -> float:
    """FLOPs of `orthogonalise` on one matrix of a shape in a dtype: its matrix products, 2 FLOPs a multiplication.

    A square costs 30 n³; an oblong one in float32, through the Gram matrix, 4 m²n + 34 m³ (m the smaller side).
    """
    m, n = sorted(shape)
    if _is_oblong(m, n, dtype):
        return 4 * m * m * n + 2 * (4 * STEPS - 3) * m**3
    return STEPS * (4 * m * m * n + 2 * m**3)


def _is_oblong(small: int, large: int, dtype: torch.dtype) -> bool:
    """Through the Gram matrix is cheaper for oblong ones, and rounds more: in bfloat16 about twice as much."""
    return large >= 2 * small and dtype == torch.float32


def _batches(updates: Sequence[Tensor]) -> Iterator[list[int]]:
    """Places of updates of one shape, however they lie, at most LARGEST elements together."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, update in enumerate(updates):
        alike.setdefault(tuple(sorted(update.shape)), []).append(i)
    for shape, places in alike.items():
        count = max(1, LARGEST // math.prod(shape))
        yield from (places[start : start + count] for start in range(0, len(places), count))


def _directly(wide: Tensor) -> Tensor:
    """X ← a X + (b G + c G²) X with G = X Xᵀ, five times, of each of a batch (m, small, large)."""
    a, b, c = NEWTON_SCHULZ
    for _ in range(STEPS):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide


def _through_the_gram(wide: Tensor) -> Tensor:
    """The same for large ≥ 2 small, in small x small products but for the first and the last.

    Every step multiplies X from the left by P = a I + b G + c G², and G by P²; these commute, so that the product of
    the P's is gathered and meets X once.
    """
    a, b, c = NEWTON_SCHULZ
    gram = wide @ wide.mT
    gathered: Tensor | None = None
    for step in range(STEPS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        gathered = factor if gathered is None else factor @ gathered
        if step < STEPS - 1:
            gram = factor @ gram @ factor
    assert gathered is not None
    return gathered @ wide


class MuonAdamW(torch.optim.Optimizer):
    """Each parameter group carries `kind: muon | adamw`.

    Muon: m ← β m + (1 − β) g, Nesterov, W ← (1 − lr·wd) W − lr √max(1, out/in) · orthogonalise (Jordan et al., 2024);
    β rises linearly from `momentum_start` to `momentum` over `momentum_warmup_steps` (nanochat).
    A pair in `pairs` is stepped as the weight it stands for: ΔB = orthogonalise(M_B S_A^-½) S_A^-½ with S_A = A Aᵀ, and
    ΔA likewise (LoRA-Muon, arXiv:2606.12921), so that only the product counts, and not how it is split; B alone decays.
    AdamW: Loshchilov & Hutter, arXiv:1711.05101, torch's own kernel.
    """

    pairs: Sequence[Pair] = ()

    def __init__(self, groups: Iterable[dict[str, Any]], dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype  # of Muon's products
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
                self._muon(parameters, group)
            elif parameters:
                self._adamw(parameters, group)
            group["taken"] += 1
        return loss

    def _muon(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        beta, in_group = _momentum(group), {id(parameter) for parameter in parameters}
        pairs = [pair for pair in self.pairs if id(pair.A) in in_group and id(pair.B) in in_group]
        in_pairs = {id(parameter) for pair in pairs for parameter in (pair.A, pair.B)}
        alone = [parameter for parameter in parameters if id(parameter) not in in_pairs]
        updates = [self._update(parameter, beta) for parameter in alone]
        splits = [whitened_gradients(pair, self._update(pair.B, beta), self._update(pair.A, beta)) for pair in pairs]
        directions = orthogonalise([*updates, *(white for split in splits for white in split[:2])], self.dtype)
        for parameter, direction in zip(alone, directions, strict=False):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(direction, alpha=-group["lr"] * oblong(*parameter.shape))
        for i, (pair, (_, _, L_A, L_B)) in enumerate(zip(pairs, splits, strict=True)):
            X, Y = directions[len(alone) + 2 * i :][:2]
            dB, dA = unwhitened(X, Y, L_A, L_B)
            rate = group["lr"] * oblong(pair.B.shape[0], pair.A.shape[1]) * (pair.step or 1.0) / pair.scaling
            pair.B.mul_(1 - group["lr"] * group["weight_decay"])
            pair.B.add_(dB, alpha=-rate)
            pair.A.add_(dA, alpha=-rate)

    def _update(self, parameter: nn.Parameter, beta: float) -> Tensor:
        """Take a gradient into the momentum; the look ahead that is to be orthogonalised."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - beta)
        return gradient.lerp(state["momentum"], beta)

    def _adamw(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                step = torch.zeros((), dtype=torch.float32, device=parameter.device if group["fused"] else "cpu")
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] |= {"step": step, **moments}
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            [*parameters],
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


def unwhitened(X: Tensor, Y: Tensor, L_A: Tensor, L_B: Tensor) -> tuple[Tensor, Tensor]:
    """ΔB = X L_A⁻¹ and ΔA = L_B⁻ᵀ Y: each moves the product by an orthonormal basis times a direction."""
    dB = torch.linalg.solve_triangular(L_A, X, upper=False, left=False)
    return dB, torch.linalg.solve_triangular(L_B.T, Y, upper=True)


def oblong(out: int, inner: int) -> float:
    """Muon's factor √max(1, out/in) on a matrix's step."""
    return max(1.0, out / inner) ** 0.5


def _momentum(group: dict[str, Any]) -> float:
    """Muon's β at the step about to be taken."""
    if group["taken"] >= group["momentum_warmup_steps"]:
        return float(group["momentum"])
    share = group["taken"] / group["momentum_warmup_steps"]
    return float((1 - share) * group["momentum_start"] + share * group["momentum"])
