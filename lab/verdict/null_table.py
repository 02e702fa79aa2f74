"""Null distribution of the smallest p value of many looks.     python -m lab.verdict.null_table

Under the null hypothesis the path of paired t statistics, t_4, t_5, …, t_H, is free of the differences' spread. So the
chance that the smallest of its p values falls below x is one function of x per horizon H: drawn once, kept as a table.
"""

import csv
import functools
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import special

from lab.errors import UsageError

TABLE = Path(__file__).with_suffix(".csv")
FIRST_LOOK = 4  # a paired t on three differences depends too much on their being normal
HORIZONS = (12, 20)
SIDES = (1, 2)  # one-sided p values for equivalence, two-sided ones for a difference
PATHS = 4_000_000  # 0.4 % standard error at the level of the strictest of four contrasts, 0.0125
CHUNK = 100_000
LEVELS = np.concatenate([np.geomspace(1e-4, 0.1, 121), np.linspace(0.1, 1, 80)[1:]])
TAIL = 80  # levels, two decades, over which the slope beyond the table is taken: wide, since its end is the noisiest


@dataclass(frozen=True)
class NullTable:
    """Chance `levels` that the smallest p value of a null path falls at or below `p_values`; both rise to 1."""

    horizon: int
    p_values: np.ndarray
    levels: np.ndarray

    def chance(self, p: np.ndarray | float) -> np.ndarray:
        """P₀(smallest p ≤ p), elementwise, linear in the logarithms; rising, and above zero for every p.

        Below the table the line of its last two decades goes on, which errs on the safe side since the true slope
        rises towards 1, up to the sum of the chances at each look, which no dependence can exceed.
        """
        x = np.log(np.maximum(p, np.finfo(float).tiny))
        known, levels = np.log(self.p_values), np.log(self.levels)
        inside = np.interp(x, known, levels)
        slope = (levels[TAIL] - levels[0]) / (known[TAIL] - known[0])
        sum_of_looks = math.log(self.horizon - FIRST_LOOK + 1) + x
        below = np.minimum(levels[0] + slope * (x - known[0]), sum_of_looks)
        return np.exp(np.where(x < known[0], below, inside))

    def nominal(self, level: float) -> float:
        """The p value at which a look decides so that all looks together err at `level`, from 1e-4 to 1."""
        if not self.levels[0] <= level <= 1:
            raise ValueError(f"level {level} is outside the table, {self.levels[0]:g} to 1.")
        return float(np.exp(np.interp(np.log(level), np.log(self.levels), np.log(self.p_values))))


def smallest_p(paths: int, seed: int = 0) -> dict[tuple[int, int], np.ndarray]:
    """Smallest p value of each null path, by (sides, horizon); fewer paths are the first of more."""
    chunks: list[dict[tuple[int, int], np.ndarray]] = []
    for start, stream in zip(
        range(0, paths, CHUNK), np.random.SeedSequence(seed).spawn(-(-paths // CHUNK)), strict=True
    ):
        draws = np.random.default_rng(stream).standard_normal((CHUNK, max(HORIZONS)))[: paths - start]
        n = np.arange(FIRST_LOOK, max(HORIZONS) + 1)
        mean = draws.cumsum(axis=1)[:, FIRST_LOOK - 1 :] / n
        variance = ((draws**2).cumsum(axis=1)[:, FIRST_LOOK - 1 :] - n * mean**2) / (n - 1)
        upper = special.stdtr(n - 1, -mean * np.sqrt(n / variance))
        both = 2 * np.minimum(upper, 1 - upper)
        chunks.append(
            {
                (sides, horizon): p[:, : horizon - FIRST_LOOK + 1].min(axis=1)
                for horizon in HORIZONS
                for sides, p in zip(SIDES, (upper, both), strict=True)
            }
        )
    return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}


def tabulate(smallest: dict[tuple[int, int], np.ndarray]) -> dict[tuple[int, int], np.ndarray]:
    """The p value of each of LEVELS, by (sides, horizon)."""
    return {key: np.append(np.quantile(values, LEVELS[:-1]), 1.0) for key, values in smallest.items()}


@functools.cache
def load(sides: int, horizon: int) -> NullTable:
    """The shipped table for one- or two-sided p values; UsageError for a horizon without one."""
    if horizon not in HORIZONS:
        known = " or ".join(map(str, HORIZONS))
        raise UsageError(f"horizon {horizon} has no table of its error rates; choose {known}.")
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    column = _column(sides, horizon)
    return NullTable(
        horizon=horizon,
        p_values=np.array([float(row[column]) for row in rows]),
        levels=np.array([float(row["level"]) for row in rows]),
    )


def write(columns: dict[tuple[int, int], np.ndarray], path: Path) -> None:
    """A row per level, a column per (sides, horizon), to six digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["level", *(_column(*key) for key in columns)])
        rows: Iterable[tuple[float, ...]] = zip(LEVELS, *columns.values(), strict=True)
        writer.writerows([f"{value:.6g}" for value in row] for row in rows)


def _column(sides: int, horizon: int) -> str:
    return f"{'one' if sides == 1 else 'two'}_sided_{horizon}"


if __name__ == "__main__":
    write(tabulate(smallest_p(PATHS)), TABLE)
    sys.stdout.write(f"wrote {TABLE} from {PATHS:,} paths\n")
