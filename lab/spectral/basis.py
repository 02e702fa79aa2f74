"""Directions of a layer that are kept from tick to tick, and in a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Basis:
    """The directions of one layer, kept between ticks."""

    tick: int
    U: Tensor  # (out, q), strongest direction first
    S: Tensor  # (q,)
    V: Tensor  # (in, q)
    directions: int  # how many of the first k mean something
    first: "Basis | None" = None  # of the first tick with a direction, k columns; None while this is it
    depth: int = 0  # effort of the next tick's iteration; 0 before the first


def pack(basis: Basis) -> dict[str, Any]:
    """As plain types and tensors, which load with `weights_only=True`."""
    first = None if basis.first is None else pack(basis.first)
    return {**{key: getattr(basis, key) for key in ("tick", "U", "S", "V", "directions", "depth")}, "first": first}


def unpack(packed: Mapping[str, Any]) -> Basis:
    """The reverse of `pack`."""
    first = packed["first"]
    return Basis(**{**packed, "first": None if first is None else unpack(first)})
