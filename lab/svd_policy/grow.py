"""A policy that trains low-rank from one share of a run to another, and full from there to its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lab.errors import UsageError
from lab.svd_policy.switching import ByStep, Move, Shapes, check_rank, check_saves, rank_for


@dataclass(frozen=True, kw_only=True)
class Grow(ByStep):
    """All layers low-rank from `low_from` to `low_until` of the run's steps, whatever the spectra say."""

    low_from: float  # share of the optimizer steps after which layers go low-rank; 0: before the first
    low_until: float  # share of them after which layers are full again
    rank: Any  # a whole number, or a share of break-even

    depends_on_end: ClassVar[bool] = True  # a finished run cannot be extended: its window would have been another

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank, "svd_policy.rank")
        if not 0 <= self.low_from < self.low_until < 1:
            raise UsageError(
                f"svd_policy.low_from={self.low_from} and low_until={self.low_until} are no window inside the run; "
                f"give shares of its steps, from 0, below 1, and in this order."
            )

    def check_steps(self, total_steps: int) -> None:
        """Raises UsageError for a window without a step."""
        first, last = self.window(total_steps)
        if first == last:
            raise UsageError(
                f"svd_policy.low_from={self.low_from} and low_until={self.low_until} are both step {first} of "
                f"{total_steps}, so nothing would train low-rank; widen the window or train longer."
            )

    def check_schedule(self, shapes: Shapes, total_steps: int) -> None:
        """Raises UsageError for a window without a step, and a rank that a layer cannot have or that saves nothing."""
        self.check_steps(total_steps)
        for name, shape in shapes.items():
            check_saves(rank_for(self.rank, shape, "svd_policy.rank"), name, shape, "svd_policy.rank")

    def window(self, total_steps: int) -> tuple[int, int]:
        """Optimizer steps after which layers go low-rank and full."""
        return round(self.low_from * total_steps), round(self.low_until * total_steps)

    def due(self, step: int, total_steps: int, shapes: Shapes) -> Sequence[Move]:
        """Every layer, at either end of the window."""
        first, last = self.window(total_steps)
        if step == first:
            ranks = {name: rank_for(self.rank, shape, "svd_policy.rank") for name, shape in shapes.items()}
            return [Move(name, "compress", rank, "low_from") for name, rank in ranks.items()]
        return [Move(name, "full", None, "low_until") for name in shapes] if step == last else []
