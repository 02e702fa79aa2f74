"""Which layers are measured at which tick, and by which process: functions of shapes and tick, never of the clock."""

from collections.abc import Mapping, Sequence

from lab.spectral.diagnosis import Engine

Shape = tuple[int, int]


def analysis_flops(shape: Shape, k: int, oversample: int, engine: Engine) -> float:
    """FLOPs of one layer's analysis with a gradient and an update, to leading order.

    warm: 8 products of the weight with a block of k + oversample columns (depth 3), and for each of the two matrices
    their projections on both sides and a sketch of 16 columns. exact: an SVD, 6mn² + 20n³ with n the smaller side
    (Golub and Van Loan, Matrix Computations, §8.6), and projections on all of them.
    """
    m, n = max(shape), min(shape)
    if engine == "exact":
        return 6 * m * n * n + 20 * n**3 + 2 * 4 * m * n * n
    return 2 * m * n * (8 * (k + oversample) + 2 * (2 * k + 16))


def cohorts(flops: Mapping[str, float], allowance: float | None) -> list[list[str]]:
    """Layers in groups whose FLOPs stay within an allowance per tick; tick t measures group t mod their number.

    Groups are filled longest first into the emptiest, in a fixed order; a layer dearer than the allowance has a group
    of its own. Without an allowance all are one group.
    """
    if allowance is None or sum(flops.values()) <= allowance:
        return [list(flops)]
    number = min(len(flops), -(-int(sum(flops.values())) // max(1, int(allowance))))
    while number < len(flops):
        groups = _spread(flops, number)
        if all(len(group) == 1 or sum(flops[name] for name in group) <= allowance for group in groups):
            break
        number += 1
    return [group for group in _spread(flops, number) if group]


def due(groups: Sequence[Sequence[str]], tick: int) -> Sequence[str]:
    """The layers that tick number `tick` measures.

    A tracker is to be told the round, tick // len(groups), else a group could miss every exact tick.
    """
    return groups[tick % len(groups)]


def owners(flops: Mapping[str, float], processes: int) -> dict[str, int]:
    """Which of the processes analyses each layer, so that the longest finishes early (Graham 1969)."""
    groups = _spread(flops, processes)
    owner = {name: rank for rank, group in enumerate(groups) for name in group}
    return {name: owner[name] for name in flops}


def _spread(flops: Mapping[str, float], number: int) -> list[list[str]]:
    groups: list[list[str]] = [[] for _ in range(number)]
    loads = [0.0] * number
    for name in sorted(flops, key=lambda name: (-flops[name], name)):
        place = loads.index(min(loads))
        groups[place].append(name)
        loads[place] += flops[name]
    order = {name: position for position, name in enumerate(flops)}
    return [sorted(group, key=order.__getitem__) for group in groups]
