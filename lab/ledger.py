"""The spectral rows of a run on disk: what a policy saw, and all that replay reads. No torch, no lightning."""

from dataclasses import dataclass
from typing import Literal

Mode = Literal["warmup", "full", "guard", "probation", "low_rank", "hold", "locked"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One layer at one tick."""

    step: int  # optimizer steps done
    layer: str
    mode: Mode  # what the layer is, read back from the model
    rank: int | None  # trainable rank it has; None in full mode
