"""Knee: the rank beyond which more rank hardly pays, with the interval its seeds leave open."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from lab.report.statistics import FEWEST_PAIRS, LEVEL

SHARE = 0.95  # of the whole gain: what "hardly pays" means here, fixed before any run
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Knee:
    """The diminishing-returns point; ranks are those of the sweep, so an interval is a pair of swept ranks."""

    rank: int | None
    low: int | None
    high: int | None
    gain: float | None  # from the reference to the best rank, in units of the metric
    reason: str


def knee(losses: Mapping[int, Sequence[float]], reference: float | None = None, share: float = SHARE) -> Knee:
    """The smallest rank whose mean loss has brought `share` of the gain from `reference` to the best rank.

    `losses` maps a rank to its seeds' losses, seeds in the same order for every rank; `reference` is the loss of
    rank 0, the base, and defaults to the smallest rank's. The 95 % interval resamples seeds, all ranks of a seed
    together (Efron 1979); below four seeds there is no knee. Raises ValueError where ranks have different numbers
    of seeds.
    Source: issue 6 ("diminishing-returns point with interval"); the share is this lab's definition.
    """
    ranks = sorted(losses)
    seeds = {len(losses[rank]) for rank in ranks}
    if len(seeds) > 1:
        raise ValueError(f"ranks have {sorted(seeds)} seeds; keep the seeds that every rank completed.")
    if len(ranks) < 3:
        return _no_knee(f"{len(ranks)} ranks do not make a curve; sweep at least three")
    if (count := seeds.pop()) < FEWEST_PAIRS:
        kept = f"{count} seed was" if count == 1 else f"{count or 'no'} seeds were"
        return _no_knee(f"{kept} completed at every rank, and a knee needs {FEWEST_PAIRS}")
    table = np.array([losses[rank] for rank in ranks], dtype=float)  # (ranks, seeds)
    if not np.isfinite(table).all():
        return _no_knee("a loss is not finite")
    whole = table.mean(axis=1)
    start = float(whole[0]) if reference is None else reference
    gain = start - float(whole.min())
    origin = f"from rank {ranks[0]}" if reference is None else "from the base"
    if not _gains(table, reference):
        return _no_knee(f"the gain {origin} cannot be told from zero over {table.shape[1]} seeds", gain)
    at = int(_first(whole[:, None], np.array([start]), share)[0])
    reason = f"{100 * share:.0f} % of the gain {origin}"
    if at == len(ranks) - 1:
        reason += "; the largest rank swept, so the true knee may lie beyond"
    elif at == 0:
        reason += "; the smallest rank swept, so the true knee may lie below"
    picks = np.random.default_rng(0).integers(table.shape[1], size=(RESAMPLES, table.shape[1]))
    means = table[:, picks].mean(axis=2)  # (ranks, resamples)
    starts = means[0] if reference is None else np.full(RESAMPLES, reference)
    low, high = np.quantile(_first(means, starts, share), [0.025, 0.975], method="closest_observation")
    return Knee(rank=ranks[at], low=ranks[int(low)], high=ranks[int(high)], gain=gain, reason=reason)


def _first(means: np.ndarray, start: np.ndarray, share: float) -> np.ndarray:
    """Index of the first rank that is within (1 − share) of the gain of the best; (ranks, n) -> (n,)."""
    best = means.min(axis=0)
    return np.asarray(np.argmax(means <= best + (1 - share) * (start - best), axis=0))


def _gains(table: np.ndarray, reference: float | None) -> bool:
    """True where some rank beats the start by more than its seeds' noise (one-sided t, Bonferroni over ranks)."""
    drop = table[0] - table[1:] if reference is None else reference - table  # (ranks, seeds)
    mean, error = drop.mean(axis=1), drop.std(axis=1, ddof=1) / math.sqrt(table.shape[1])
    if not error.any():  # no seed differs from another: there is no noise to be beaten
        return bool((mean > 0).any())
    p = special.stdtr(table.shape[1] - 1, -mean[error > 0] / error[error > 0])
    return bool(p.min() < LEVEL / len(p))


def _no_knee(reason: str, gain: float | None = None) -> Knee:
    return Knee(rank=None, low=None, high=None, gain=gain, reason=reason)
