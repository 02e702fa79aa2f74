"""The energy of a matrix of any scale, and the power of two that brings it to where float32 holds squares of squares.

Multiplying by a power of two is exact, so that measures of the scaled matrix are those of the matrix, bit for bit.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PART = 2**18  # entries whose squares are summed in float32: off by 4e-7 at most, in trials
LEAST, MOST = 2.0**-40, 2.0**40  # ‖X‖² of matrices that are left as they are


@dataclass(frozen=True)
class Scale:
    """A matrix as 2^exponent · X; exponent 0 for an ordinary one, a zero one and one that is not finite."""

    exponent: int
    total: float  # ‖X‖_F²; not finite exactly where an entry is not

    @property
    def sound(self) -> bool:
        """True for a finite matrix that is not zero."""
        return 0 < self.total < math.inf

    @property
    def energy(self) -> float:
        """‖2^exponent X‖_F²."""
        return _times(_times(self.total, self.exponent), self.exponent)

    def down(self, matrix: Tensor) -> Tensor:
        """X from the matrix, or anything else of its unit; of float32 at least where it is not left as it is."""
        return _shift(matrix, -self.exponent)

    def up(self, values: Tensor) -> Tensor:
        """Values in the matrix's unit from those in X's."""
        return _shift(values, self.exponent)


def scale_of(matrix: Tensor) -> Scale:
    """The scale of a matrix of any shape and floating dtype."""
    total = float(squares(matrix))
    return Scale(0, total) if LEAST <= total <= MOST else extreme_scale_of(matrix)


def extreme_scale_of(matrix: Tensor) -> Scale:
    """The scale of a matrix whose energy is not an ordinary number in float32: its largest entry comes near 1."""
    top = float(matrix.abs().amax())
    if top == 0 or not math.isfinite(top):
        return Scale(0, top)
    exponent = math.frexp(top)[1]
    return Scale(exponent, float(squares(_shift(matrix, -exponent))))


def energy(matrix: Tensor) -> float:
    """‖W‖_F² of a matrix of any shape and scale; not finite exactly where an entry is not (for float64: beyond 1e154).

    Of 2¹⁸ entries at a time in float32 at least, these in float64.
    """
    return scale_of(matrix).energy


def squares(matrix: Tensor) -> Tensor:
    """`energy` of a matrix of ordinary scale, as a float64 scalar on its device, where many are asked for at once."""
    whole = (matrix if matrix.is_contiguous() else matrix.mT).reshape(-1)
    whole = whole.to(torch.promote_types(matrix.dtype, torch.float32))
    if len(whole) <= PART:
        return torch.dot(whole, whole).double()
    return torch.stack([torch.dot(part, part) for part in whole.split(PART)]).double().sum()


def normal(values: Tensor) -> Tensor:
    """Values (…,) times the power of two that brings the largest magnitude near 1; zeros stay."""
    return _shift(values, -math.frexp(float(values.abs().amax()))[1])


def _shift(values: Tensor, exponent: int) -> Tensor:
    if exponent == 0:
        return values
    half = exponent // 2  # 2^exponent itself may be no number of the dtype
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    return wide * 2.0**half * 2.0 ** (exponent - half)


def _times(value: float, exponent: int) -> float:
    half = exponent // 2
    return value * 2.0**half * 2.0 ** (exponent - half)
