"""Moments of an optimizer across a switch: what it knows of a weight as it knows it of the pair, and back.

With W = s B A the factors' gradients are s G Aᵀ and s Bᵀ G, and first moments, being linear, go the same way. All
here is per layer, on tensors alone, float32 in and out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lab.training.muon import orthogonalise, unwhitened
from lab.training.pairs import Pair, whitened_gradients

State = dict[str, Tensor]
CUT = 1e-4  # singular values of a factor below this share of its largest are noise: what they would give is left out


@dataclass
class Factors:
    """A pair as plain tensors."""

    A: Any  # (r, in)
    B: Any  # (out, r)
    scaling: float = 1.0
    step: float | None = None


@dataclass(frozen=True)
class Adam:
    """AdamW's state of one parameter, bias-corrected, and the settings that make an update of it."""

    mean: Tensor
    square: Tensor
    eps: float

    @classmethod
    def of(cls, state: Mapping[str, Tensor], group: Mapping[str, Any]) -> "Adam":
        """As the next step would read it; of a count that begins anew, as its first one will."""
        first, second = (1 - beta ** max(float(state["step"]), 1.0) for beta in group["betas"])
        return cls(state["exp_avg"] / first, state["exp_avg_sq"] / second, group["eps"])

    def state(self, step: Tensor, group: Mapping[str, Any]) -> State:
        """As the optimizer keeps it, at a step count, which is copied."""
        first, second = (1 - beta ** float(step) for beta in group["betas"])
        return {"step": step.clone(), "exp_avg": self.mean * first, "exp_avg_sq": self.square * second}

    @property
    def update(self) -> Tensor:
        """What a step takes off the parameter, at a rate of 1."""
        return self.mean / (self.square.sqrt() + self.eps)


def product_change(factors: Pair, dB: Tensor, dA: Tensor) -> Tensor:
    """s (ΔB A + B ΔA), to first order."""
    return factors.scaling * (dB @ factors.A + factors.B @ dA)


def rms(x: Tensor) -> float:
    """Root mean square."""
    return float(x.detach().double().square().mean().sqrt())


def split_adam(weight: Adam, pair: Factors) -> tuple[Adam, Adam]:
    """AdamW's moments of B and of A from those of their weight.

    m_B = s m Aᵀ is exact; v_B = s² max(v − m², 0) (A∘A)ᵀ + m_B² takes entries of a gradient to vary independently
    (LDAdam, arXiv:2410.16103, equation of its second moment).
    """
    s, noise = pair.scaling, (weight.square - weight.mean.square()).clamp_min(0)
    m_B, m_A = s * weight.mean @ pair.A.T, s * pair.B.T @ weight.mean
    v_B = s**2 * noise @ pair.A.square().T + m_B.square()
    v_A = s**2 * pair.B.square().T @ noise + m_A.square()
    return Adam(m_B, v_B, weight.eps), Adam(m_A, v_A, weight.eps)


def scaling_for_adam(weight: Adam | None, pair: Factors) -> float:
    """The s at which the pair's first AdamW step changes the weight by the RMS of the weight's own.

    AdamW's steps do not know how large a gradient is, so that with factors shrunk by √s the change grows as √s: s is
    the square of the ratio at 1. Before a first step both would move by a sign in every entry.
    """
    if weight is None:
        signs = pair.A.square().sum() / pair.A.shape[1] + pair.B.square().sum() / pair.B.shape[0]
        return 1.0 / float(signs) if float(signs) > 0 else 1.0
    of_B, of_A = split_adam(weight, pair)
    change = rms(product_change(pair, of_B.update, of_A.update))
    own = rms(weight.update)
    return (own / change) ** 2 if change > 0 and own > 0 else 1.0


def step_for_muon(momentum: Tensor | None, pair: Factors, dtype: torch.dtype) -> float:
    """The factor on Muon's step at which the pair's first one changes the weight by the RMS of the weight's own.

    Before a first step: √(g/2r), of one orthonormal change of rank g and two of rank r. Of a product of 0, whose first
    step moves B alone, it is the second one's: from then on both factors move.
    """
    out, rank = pair.B.shape
    inner = pair.A.shape[1]
    if momentum is None or not bool(momentum.any()):
        return float((min(out, inner) / (2 * rank)) ** 0.5)
    if not bool(pair.B.any()):
        X, Y, L_A, L_B = whitened_gradients(pair, momentum @ pair.A.T, torch.zeros_like(pair.A))
        pair = Factors(pair.A, unwhitened(orthogonalise([X], dtype)[0], Y, L_A, L_B)[0], pair.scaling)
    X, Y, L_A, L_B = whitened_gradients(pair, momentum @ pair.A.T, pair.B.T @ momentum)
    own, X, Y = orthogonalise([momentum, X, Y], dtype)
    change = rms(product_change(pair, *unwhitened(X, Y, L_A, L_B)))
    return rms(own) / change if change > 0 else 1.0


def joined(pair: Pair, of_B: Tensor, of_A: Tensor) -> Tensor:
    """The weight's first moment as far as the factors' tell it, (out, in): its tangent part, X Q + P Y − P (Pᵀ X) Q.

    X = m Qᵀ and Y = Pᵀ m with Q and P orthonormal bases of the factors; exact on what the pair could move.
    """
    U_A, S_A, Q = torch.linalg.svd(pair.A.detach().double(), full_matrices=False)
    P, S_B, Vh_B = torch.linalg.svd(pair.B.detach().double(), full_matrices=False)
    keep_A, keep_B = CUT * S_A.max().clamp_min(1e-30) < S_A, CUT * S_B.max().clamp_min(1e-30) < S_B
    U_A, S_A, Q = U_A[:, keep_A], S_A[keep_A], Q[keep_A]
    P, S_B, Vh_B = P[:, keep_B], S_B[keep_B], Vh_B[keep_B]
    X = of_B.double() @ U_A / S_A / pair.scaling
    Y = (Vh_B @ of_A.double()) / S_B[:, None] / pair.scaling
    return (X @ Q + P @ (Y - P.T @ X @ Q)).float()


def joined_adam(pair: Pair, of_B: Adam, of_A: Adam) -> Adam:
    """AdamW's moments of the weight from those of its factors.

    The second is an outer product of what B's rows and A's columns saw (Adafactor, arXiv:1804.04235), scaled so that
    the weight's first update has the RMS of the pair's last.
    """
    mean = joined(pair, of_B.mean, of_A.mean)
    rows, columns = of_B.square.sum(dim=1), of_A.square.sum(dim=0)
    rows, columns = (v.clamp_min(1e-12 * float(v.mean())) if float(v.sum()) > 0 else v + 1 for v in (rows, columns))
    square = torch.outer(rows / rows.mean(), columns / columns.mean())
    last, unit = rms(product_change(pair, of_B.update, of_A.update)), rms(mean / square.sqrt())
    if last > 0 and unit > 0:
        square *= (unit / last) ** 2
    return Adam(mean, square, of_B.eps)
