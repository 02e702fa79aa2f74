"""Exact reference computations that the checks share: distributions as dictionaries, and linear systems."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction

Pmf = Mapping[int, Fraction]  # value -> probability


def sum_of(first: Pmf, second: Pmf) -> dict[int, Fraction]:
    """The distribution of the sum of two independent whole-numbered variables."""
    total: dict[int, Fraction] = defaultdict(Fraction)
    for x, p in first.items():
        for y, q in second.items():
            total[x + y] += p * q
    return dict(total)


def trials(n: int, p: Fraction) -> dict[int, Fraction]:
    """The number of successes in n independent trials, added up one trial at a time."""
    total: dict[int, Fraction] = {0: Fraction(1)}
    for _ in range(n):
        total = sum_of(total, {0: 1 - p, 1: p})
    return total


def mean(pmf: Pmf) -> Fraction:
    """E[X]."""
    return sum((x * p for x, p in pmf.items()), Fraction(0))


def variance(pmf: Pmf) -> Fraction:
    """E[(X - E[X])^2], from the definition."""
    centre = mean(pmf)
    return sum(((x - centre) ** 2 * p for x, p in pmf.items()), Fraction(0))


def solve_linear(matrix: Sequence[Sequence[Fraction | int]], right: Sequence[Fraction | int]) -> list[Fraction]:
    """The solution of a regular linear system by Gauss-Jordan elimination; raises StopIteration for a singular one."""
    rows = [[Fraction(x) for x in (*row, b)] for row, b in zip(matrix, right, strict=True)]
    for i in range(len(rows)):
        pivot = next(j for j in range(i, len(rows)) if rows[j][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for j in range(len(rows)):
            if j != i and rows[j][i]:
                factor = rows[j][i]
                rows[j] = [x - factor * y for x, y in zip(rows[j], rows[i], strict=True)]
    return [row[-1] for row in rows]


def stationary(transition: Sequence[Sequence[Fraction | int]]) -> list[Fraction]:
    """The stationary distribution of an irreducible chain: pi (P - I) = 0 with one equation replaced by sum pi = 1."""
    n = len(transition)
    equations: list[list[Fraction | int]] = [
        [transition[i][j] - (1 if i == j else 0) for i in range(n)] for j in range(n - 1)
    ]
    return solve_linear([*equations, [1] * n], [0] * (n - 1) + [1])


def hitting_times(transition: Sequence[Sequence[Fraction | int]], target: int) -> list[Fraction]:
    """Expected steps to reach `target` from each state (0 from the target itself): (I - Q) h = 1 off the target."""
    others = [i for i in range(len(transition)) if i != target]
    system = [[(1 if i == j else 0) - transition[i][j] for j in others] for i in others]
    times = dict(zip(others, solve_linear(system, [1] * len(others)), strict=True))
    return [times.get(i, Fraction(0)) for i in range(len(transition))]
