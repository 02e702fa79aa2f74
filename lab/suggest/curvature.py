"""Largest eigenvalue of a loss's Hessian in what trains, by Lanczos on Hessian-vector products; no training."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lab.data.encode import Sample
from lab.process import heartbeat
from lab.training.evaluate import batches_of
from lab.training.loader import collate
from lab.training.loss import LabelGate, token_loss

TOKENS_PER_BATCH = 1024  # padded; a double backward keeps the graph of the first, so half of what a backward takes
STEPS = 10  # of Lanczos; by then an outlying eigenvalue is there to a few per cent


def largest_eigenvalue(
    product: Callable[[Tensor], Tensor],
    size: int,
    steps: int = STEPS,
    seed: int = 0,
    device: torch.device | None = None,
) -> float:
    """The greatest eigenvalue of a symmetric matrix (size, size), given its product with a vector (size,).

    Lanczos 1950 from a random vector, by the three-term recurrence: what it loses of orthogonality repeats eigenvalues
    and leaves the greatest where it is, so no basis is kept. From below: it never exceeds the true one but by rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(size, generator=generator).to(device or torch.device("cpu"))
    vector = vector / torch.linalg.vector_norm(vector)
    before, beta = torch.zeros_like(vector), 0.0
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(steps, size)):
        image = product(vector) - beta * before
        diagonal.append(float(image @ vector))
        image = image - diagonal[-1] * vector
        beta = float(torch.linalg.vector_norm(image))
        beside.append(beta)
        if beta <= 1e-6 * max(map(abs, diagonal)):  # the space is exhausted: the eigenvalues are exact
            break
        before, vector = vector, image / beta
    off = torch.tensor(beside[: len(diagonal) - 1], dtype=torch.float64)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
    return float(torch.linalg.eigvalsh(matrix)[-1])


def hessian_product(
    net: nn.Module, gate: LabelGate, parameters: Sequence[nn.Parameter], samples: Sequence[Sample], pad_id: int
) -> Callable[[Tensor], Tensor]:
    """The product of a vector (Σ numel,) with the Hessian, in `parameters`, of the mean loss over all labelled tokens.

    Exact, by double backward, in the net's own precision; the fused attention and the fused loss have no second
    derivative, so both are passed by.
    """
    gate.passes_by = False
    device = parameters[0].device
    labels = sum(int((sample.labels[1:] != -100).sum()) for sample in samples)
    batches = [
        {key: value.to(device) for key, value in collate(batch, pad_id).items()}
        for batch in batches_of(samples, TOKENS_PER_BATCH)
    ]

    @heartbeat.strict()
    def product(vector: Tensor) -> Tensor:
        parts = list(_like(vector, parameters))
        total = torch.zeros_like(vector)
        with sdpa_kernel(SDPBackend.MATH):
            for tensors in batches:
                loss = token_loss(net, gate, **tensors) / labels
                gradients = torch.autograd.grad(loss, parameters, create_graph=True)
                along = torch.stack([(g * v).sum() for g, v in zip(gradients, parts, strict=True)]).sum()
                second = torch.autograd.grad(along, parameters, materialize_grads=True)
                total += torch.cat([part.reshape(-1) for part in second])
        return total

    return product


def _like(vector: Tensor, parameters: Sequence[nn.Parameter]) -> Iterator[Tensor]:
    at = 0
    for parameter in parameters:
        yield vector[at : at + parameter.numel()].view_as(parameter)
        at += parameter.numel()
