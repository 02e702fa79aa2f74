"""Low-rank pairs that stand in a weight's place, W = s B A, as clipping and optimizers see them: as one weight."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

# The ridge of a Gram matrix, in machine epsilons of its norm, with which what rounding makes of its eigenvalues grows:
# half as much left some matrix indefinite.
ROUNDING = 4


class Pair(Protocol):
    """A trained pair, W = scaling · B A plus what is frozen."""

    A: nn.Parameter  # (rank, in)
    B: nn.Parameter  # (out, rank)
    scaling: float
    step: float | None  # factor on Muon's step, set at the switch


def cholesky(factor: Tensor) -> Tensor:
    """Lower L (r, r) with L Lᵀ = F Fᵀ + ridge, of a factor F (r, n): L⁻¹F has orthonormal rows; the identity for F = 0.

    Any root of the Gram matrix whitens; whatever is orthogonally equivariant, as orthogonalising is, gives the same
    product by each, and this one is the cheapest. The ridge is as large as rounding of F Fᵀ, below which float32 tells
    no eigenvalues apart. F is brought to entries below 2 by a power of two first, so that its squares neither overflow
    nor vanish.

    Raises LinAlgError where F is not finite.
    """
    largest = factor.abs().amax()
    exponent = torch.frexp(torch.where(largest > 0, largest, torch.ones_like(largest))).exponent - 1
    scale = torch.exp2(exponent.to(factor.dtype))
    even = factor / scale
    gram = even @ even.T
    ridge = ROUNDING * torch.finfo(gram.dtype).eps * torch.linalg.matrix_norm(gram)
    gram.diagonal().add_(torch.where(ridge > 0, ridge, torch.ones_like(ridge)))
    return torch.linalg.cholesky(gram) * scale


def whitened_gradients(pair: Pair, gradient_B: Tensor, gradient_A: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X = G Qᵀ (out, r) and Y = Pᵀ G (r, in) of the weight's gradient G, and the roots L_A and L_B they come from.

    Q = L_A⁻¹A and P = B L_B⁻ᵀ are orthonormal, and the factors' gradients are s G Aᵀ and s Bᵀ G.
    """
    L_A, L_B = cholesky(pair.A.detach()), cholesky(pair.B.detach().T)
    X = torch.linalg.solve_triangular(L_A.T, gradient_B, upper=True, left=False)
    Y = torch.linalg.solve_triangular(L_B, gradient_A, upper=False)
    return X / pair.scaling, Y / pair.scaling, L_A, L_B


def tangent_square(pair: Pair) -> Tensor:
    """‖P Y + X Q − P Pᵀ X Q‖²_F, the square of the part of the weight's gradient that lies in what the pair can move.

    P Y = P Pᵀ G and X Q = G Qᵀ Q overlap in P Pᵀ G Qᵀ Q. It does not depend on how the product is split.
    """
    assert pair.A.grad is not None, "a pair without gradients"
    assert pair.B.grad is not None, "a pair without gradients"
    X, Y, _, L_B = whitened_gradients(pair, pair.B.grad, pair.A.grad)
    core = torch.linalg.solve_triangular(L_B, pair.B.detach().T @ X, upper=False)
    return X.square().sum() + Y.square().sum() - core.square().sum()


def total_norm(parameters: Sequence[nn.Parameter], pairs: Sequence[Pair]) -> Tensor:
    """Global norm of the gradients, each pair counted by its weight's part (`tangent_square`), whatever its split."""
    in_pairs = {id(parameter) for pair in pairs for parameter in (pair.A, pair.B)}
    others = [p.grad for p in parameters if p.grad is not None and id(p) not in in_pairs]
    norm = torch.nn.utils.get_total_norm(others)
    squares = [tangent_square(pair) for pair in pairs if pair.A.grad is not None]
    return (norm.square() + torch.stack(squares).sum()).clamp_min(0).sqrt() if squares else norm


@torch.no_grad()
def decay_once(optimizer: torch.optim.Optimizer, pairs: Iterable[Pair]) -> None:
    """Ahead of an AdamW step, undo what it will decay of each A: the product decays by 1 − lr·wd, and not twice."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for pair in pairs:
        if pair.A.grad is None:  # AdamW leaves it as it is
            continue
        group = groups[id(pair.A)]
        if group.get("kind", "adamw") == "adamw":  # Muon decays B alone
            pair.A.mul_(1 / (1 - group["lr"] * group["weight_decay"]))
