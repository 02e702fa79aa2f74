"""What two sides of a split have in common, found by hashing every window of their bytes."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

WINDOW = 50  # bytes; a shared run of 50 characters is at least as many bytes, so none is missed
ODD = np.uint64(
    0x9E3779B97F4A7C15
)  # 2^64 over the golden ratio: an odd multiplier that spreads bits (Knuth, TAOCP 6.4)
TABLE_BITS = 24


def window_hashes(data: bytes) -> NDArray[np.uint64]:
    """(len - 49,) 64-bit hashes of all windows, by doubling: 1, 2, 4 ... 32 bytes, then 32 + 16 + 2 = 50."""
    hashes = {1: np.frombuffer(data, np.uint8).astype(np.uint64) + np.uint64(1)}
    if len(data) < WINDOW:
        return hashes[1][:0]
    for size in (1, 2, 4, 8, 16):
        hashes[2 * size] = mix(hashes[size][:-size], hashes[size][size:])
    return mix(mix(hashes[32][:-18], hashes[16][32:-2]), hashes[2][48:])


def mix(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One hash of two, order kept."""
    product = left * ODD
    product += right
    product *= ODD
    product ^= product >> np.uint64(31)
    return product


class Windows:
    """All 50-byte windows of some texts, and the removal of every line elsewhere that touches one.

    A hash collision costs a line that was not shared; a shared line is never kept.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        parts = [window_hashes(text.encode()) for text in texts]
        self.known = np.sort(np.concatenate(parts)) if parts else np.empty(0, np.uint64)
        # A bit per hash prefix answers most look-ups without the binary search.
        self.table = np.zeros(1 << TABLE_BITS, np.bool_)
        self.table[self.known >> np.uint64(64 - TABLE_BITS)] = True

    def starts(self, data: bytes) -> NDArray[np.intp]:
        """(n,) where in the data a known window starts."""
        hashes = window_hashes(data)
        maybe = np.flatnonzero(self.table[hashes >> np.uint64(64 - TABLE_BITS)])
        at = np.searchsorted(self.known, hashes[maybe])
        found = at < len(self.known)
        found[found] = self.known[at[found]] == hashes[maybe[found]]
        return maybe[found]

    def touch(self, text: str) -> bool:
        """True where the text shares a window."""
        return len(self.starts(text.encode())) > 0

    def without(self, text: str) -> str:
        """The text less every line that a known window touches; repeated, since closing a gap makes new windows."""
        while len(starts := self.starts(data := text.encode())):
            line_of = np.cumsum(
                np.frombuffer(data, np.uint8) == ord("\n")
            )  # (bytes,), a newline counts to the next line
            first, last = line_of[starts], line_of[starts + WINDOW - 1]
            depth = np.zeros(line_of[-1] + 2, np.int64)
            np.add.at(depth, first, 1)
            np.add.at(depth, last + 1, -1)
            lines = text.split("\n")
            text = "\n".join(line for line, hits in zip(lines, np.cumsum(depth), strict=False) if hits == 0)
        return text
