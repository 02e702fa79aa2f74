"""A validation side taken from training: by content, so the same whatever the order and the run."""

import hashlib
from collections.abc import Sequence

from lab.data import Record
from lab.errors import UsageError


def hold_out(records: Sequence[Record], val_fraction: float, what: str) -> tuple[list[Record], list[Record]]:
    """(train, val) in the given order; val is the fraction of distinct records whose SHA-256 is lowest, at least one.

    Equal records share a side. Raises UsageError for a fraction outside (0, 1) or fewer than two distinct records.
    """
    if not 0 < val_fraction < 1:
        raise UsageError(
            f"data.val_fraction={val_fraction} must lie between 0 and 1; or give data.val_path (files) or "
            f"data.val_split (hub)."
        )
    ordered = sorted({record: hashlib.sha256(repr(record).encode()).digest() for record in records}.items(), key=_hash)
    if len(ordered) < 2:
        raise UsageError(
            f"{what} holds too little to hold out a validation side ({len(ordered)} distinct example); give a "
            f"validation side of its own, or more examples."
        )
    count = min(max(1, round(val_fraction * len(ordered))), len(ordered) - 1)
    chosen = {record for record, _ in ordered[:count]}
    return [r for r in records if r not in chosen], [r for r in records if r in chosen]


def _hash(item: tuple[Record, bytes]) -> bytes:
    return item[1]
