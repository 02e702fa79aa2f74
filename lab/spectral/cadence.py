"""Cadence: the layers measured at a tick, and by which process, from shapes and tick alone, never from the clock."""

import math
from collections.abc import Mapping, Sequence

from lab.spectral.by_gram import GRAM_UP_TO
from lab.spectral.diagnosis import Engine
from lab.spectral.tracker import LEAST_BLOCKS, width_of_block

Shape = tuple[int, int]

PRODUCTS_BY_GRAM, PRODUCTS_BY_KRYLOV = 10, 18  # medians on weights 20 Muon steps apart, docs/performance.md


def analysis_flops(shape: Shape, k: int, oversample: int, engine: Engine, exact_every_n_ticks: int) -> float:
    """FLOPs of one layer's analysis with gradient, momentum and update, averaged over ticks, to leading order.

    warm, by Gram matrix: this n x n matrix and PRODUCTS_BY_GRAM of it with a block; beyond its width PRODUCTS_BY_KRYLOV
    of the weight with a block, as on a CPU; then three matrices projected on both sides and on 16 columns; and at every
    `exact_every_n_ticks`-th tick six Gram matrices (2mn²: weight, change, W₀, those three), the first two's eigenvalues
    (4n³/3) and the third's eigenvectors (9n³), also where those are kept and taken only once.
    exact: an SVD, 6mn² + 20n³ with n the smaller side, and projections on all directions.
    Source of the cubic terms: Golub and Van Loan, Matrix Computations, §8.3 and §8.6.
    """
    m, n = max(shape), min(shape)
    if engine == "exact" or n < LEAST_BLOCKS * width_of_block(k, oversample):
        return 6 * m * n * n + 20 * n**3 + 3 * 4 * m * n * n
    by_gram = 2 * m * n * n + PRODUCTS_BY_GRAM * 2 * n * n * width_of_block(k, oversample)
    by_krylov = PRODUCTS_BY_KRYLOV * 2 * m * n * width_of_block(k, oversample)
    whole = (6 * 2 * m * n * n + (2 * 4 / 3 + 9) * n**3) / exact_every_n_ticks
    return (by_gram if n <= GRAM_UP_TO["cpu"] else by_krylov) + 3 * 2 * m * n * (2 * k + 16) + whole


def cohorts(flops: Mapping[str, float], allowance: float | None, share: float = 1.0) -> list[list[str]]:
    """Layers in groups whose FLOPs stay within an allowance per tick; tick t measures group t mod their number.

    Groups are filled longest first into the emptiest, in a fixed order; a layer dearer than the allowance has a group
    of its own. There are at least 1/`share` of them, as far as there are layers; without either all are one group.
    """
    number, total = math.ceil(1 / share), sum(flops.values())
    if allowance is None or total <= allowance * number:
        return [group for group in _balance(flops, number) if group] if number > 1 else [list(flops)]
    number = min(len(flops), max(number, -(-int(total) // max(1, int(allowance)))))
    while number < len(flops):
        groups = _balance(flops, number)
        if all(len(group) == 1 or sum(flops[name] for name in group) <= allowance for group in groups):
            break
        number += 1
    return [group for group in _balance(flops, number) if group]


def due(groups: Sequence[Sequence[str]], tick: int) -> Sequence[str]:
    """The layers that tick number `tick` measures.

    A tracker is to be told the round, tick // len(groups), else a group could miss every exact tick.
    """
    return groups[tick % len(groups)]


def owners(flops: Mapping[str, float], processes: int) -> dict[str, int]:
    """The process that analyses each layer, such that the longest finishes early (Graham 1969)."""
    groups = _balance(flops, processes)
    owner = {name: rank for rank, group in enumerate(groups) for name in group}
    return {name: owner[name] for name in flops}


def _balance(flops: Mapping[str, float], number: int) -> list[list[str]]:
    groups: list[list[str]] = [[] for _ in range(number)]
    loads = [0.0] * number
    for name in sorted(flops, key=lambda name: (-flops[name], name)):
        place = loads.index(min(loads))
        groups[place].append(name)
        loads[place] += flops[name]
    order = {name: position for position, name in enumerate(flops)}
    return [sorted(group, key=order.__getitem__) for group in groups]
