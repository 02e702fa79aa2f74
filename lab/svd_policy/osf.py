"""A policy that keeps principal directions from the start, as peft's OSF does; it measures and decides nothing."""

from dataclasses import dataclass

from lab.errors import UsageError
from lab.svd_policy.never import Never


@dataclass(frozen=True, kw_only=True)
class Osf(Never):
    """Layers keep their leading singular directions and train the others (OSF, arXiv:2504.07097)."""

    effective_rank: float | None  # directions kept: a number, a share of the smaller side, or peft's half
    train_others: bool  # norms, embeddings and what else is no target train in full; peft freezes them

    def __post_init__(self) -> None:
        value: object = self.effective_rank
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and (0 < value < 1 or (value >= 1 and value % 1 == 0))):  # type: ignore[operator]
            raise UsageError(
                f"svd_policy.effective_rank={value!r} is no number of directions; give a whole one from 1, a share of "
                f"the smaller side below 1, or null for half of it."
            )

    def kept(self, name: str, shape: tuple[int, int]) -> int:
        """Directions that a layer (out, in) keeps, as peft rounds a share; raises UsageError where that leaves none."""
        least = min(shape)
        value = 0.5 if self.effective_rank is None else self.effective_rank
        count = int(least * value) if value < 1 else int(value)
        if not 1 <= count < least:
            raise UsageError(
                f"svd_policy.effective_rank={self.effective_rank} keeps {count} of the {least} directions of {name} "
                f"({shape[0]}x{shape[1]}), and some must be kept and some train; give 1 to {least - 1}, or leave the "
                f"layer out of svd_policy.target_modules."
            )
        return count
