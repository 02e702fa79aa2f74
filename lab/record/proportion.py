"""Interval of a share: what the number of examples it was counted over leaves open. Standard library only."""

import math
from statistics import NormalDist

LEVEL = 0.95


def wilson(share: float, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a binomial share of `count` examples, as (low, high).

    Chosen over Clopper and Pearson's, which holds its level at every share and is wider than it need be for it: over
    shares, Wilson's keeps its level on average. Source: Wilson 1927; Brown, Cai and DasGupta 2001.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
