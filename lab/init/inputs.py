"""Checks of what a scheme is given, each in one place; a refusal names the option or the layer, and the way out."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from lab.errors import UsageError
from lab.layer import Evidence, Need, Target

OFFSETS = ("separate", "fold", "none")

PHRASE = {  # of each kind of evidence, as a sentence names it
    "gradient": "the gradient of the training loss",
    "activations": "the second moment of the layer's inputs",
    "delta": "a weight change, of a warm-up run or of a teacher",
}


def check_choice(key: str, value: str, known: Sequence[str]) -> None:
    """Refuse a value that is none of the known ones."""
    if value not in known:
        raise UsageError(f"{key}={value!r} is unknown; it takes {' | '.join(known)}.")


def check_positive(key: str, value: float, rest: str) -> None:
    """Refuse a size that is not positive and finite; `rest` ends the sentence with a reason or a better value."""
    if not 0 < value < math.inf:
        raise UsageError(f"{key}={value} is not positive and finite{rest}.")


def check_rank(target: Target, rank: int, limit: int | None = None, why: str = "the smaller side of the layer") -> None:
    """Refuse a rank below 1 or above `limit`, by default the smaller side of the layer."""
    limit = target.max_rank if limit is None else limit
    if rank < 1:
        raise UsageError(f"rank={rank} for {target.name} is below 1; choose 1 to {limit}.")
    if rank > limit:
        out, inner = target.shape
        raise UsageError(
            f"rank={rank} for {target.name} ({out} x {inner}) exceeds {limit}, {why}; choose 1 to {limit}."
        )


def _greatest(matrix: Tensor) -> float:
    """The greatest absolute entry, NaN if any is; one pass, where isfinite and a count take several."""
    return float(torch.linalg.vector_norm(matrix, math.inf))


def check_finite(target: Target, what: str, matrix: Tensor) -> None:
    """Refuse NaN and infinity, which a decomposition would spread over every factor."""
    if not math.isfinite(_greatest(matrix)):
        bad = int((~torch.isfinite(matrix)).sum())
        raise UsageError(
            f"{what} of {target.name} has {bad} non-finite of {matrix.numel()} entries, so it cannot be decomposed; "
            "check the checkpoint and the precision it was loaded in, or choose init=random."
        )


def check_nonzero(target: Target, what: str, matrix: Tensor) -> None:
    """Refuse a zero matrix: both factors would be 0, each the other's gradient, and the pair would never train."""
    if _greatest(matrix) == 0:
        raise UsageError(
            f"{what} of {target.name} is zero, so both factors would be zero and never train; "
            "leave the layer out with adapter.exclude_modules, or choose init=random."
        )


def require(target: Target, evidence: Evidence, need: Need) -> Tensor:
    """Evidence that a scheme cannot do without: float32, finite and not zero; raises UsageError where it is none."""
    matrix: Tensor | None = getattr(evidence, need)
    if matrix is None:
        raise UsageError(
            f"{PHRASE[need]} was not gathered for {target.name}, and this init needs it; "
            "give the run training data, or choose an init without data such as init=pissa."
        )
    side = target.shape[1]
    expected = (side, side) if need == "activations" else target.shape
    if tuple(matrix.shape) != expected:
        raise UsageError(
            f"{PHRASE[need]} of {target.name} has shape {tuple(matrix.shape)}; the layer needs {expected}."
        )
    matrix = matrix.detach().to(torch.float32)
    check_finite(target, PHRASE[need], matrix)
    check_nonzero(target, PHRASE[need], matrix)
    return matrix


def normal(shape: tuple[int, int], generator: Generator, like: Tensor) -> Tensor:
    """Standard normal float32 numbers, drawn where the generator lives and moved to where `like` lives."""
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32).to(like.device)


def uniform(shape: tuple[int, int], bound: float, generator: Generator, like: Tensor) -> Tensor:
    """Float32 numbers uniform in ±bound, drawn where the generator lives and moved to where `like` lives."""
    unit = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float32)
    return ((2 * unit - 1) * bound).to(like.device)
