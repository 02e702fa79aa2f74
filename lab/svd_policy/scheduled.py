"""A policy that switches at fixed steps, whatever the spectra say: the control of every policy that decides."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.errors import UsageError, nearest
from lab.layer import matching
from lab.svd_policy.switching import TARGETS, ByStep, Move, Shapes, check_rank, check_saves, rank_for

KEYS = ("step", "layers", "action", "rank")


@dataclass(frozen=True, kw_only=True)
class Scheduled(ByStep):
    """Switches given layers after given optimizer steps; step 0 is before the first."""

    schedule: Sequence[Mapping[str, Any]]  # of {step, layers, action, rank}, in any order

    def __post_init__(self) -> None:
        super().__post_init__()
        for i, entry in enumerate(self.schedule):
            where = f"svd_policy.schedule[{i}]"
            strange = [key for key in entry if key not in KEYS]
            if strange:
                raise UsageError(f"{where} has {strange[0]!r}{nearest(strange[0], KEYS)} (keys: {', '.join(KEYS)}).")
            step, action = entry.get("step"), entry.get("action")
            if not isinstance(step, int) or isinstance(step, bool) or step < 0:
                raise UsageError(f"{where}.step={step!r} is no number of optimizer steps from 0.")
            if action not in TARGETS:
                raise UsageError(f"{where}.action={action!r} is none of {', '.join(TARGETS)}.")
            if (entry.get("rank") is None) != (action == "full"):
                wanted = "needs no rank" if action == "full" else "needs a rank"
                raise UsageError(f"{where}: {action} {wanted}, and has rank={entry.get('rank')!r}.")
            if action != "full":
                check_rank(entry["rank"], f"{where}.rank")

    def check_steps(self, total_steps: int) -> None:
        """Raises UsageError for a step at or after the end."""
        for i, entry in enumerate(self.schedule):
            if (step := entry["step"]) >= total_steps:
                raise UsageError(
                    f"svd_policy.schedule[{i}].step={step} is not before the run's end, step {total_steps}; lower it."
                )

    def check_schedule(self, shapes: Shapes, total_steps: int) -> None:
        """Raises UsageError for a step at or after the end, a layer that is not there, and events that contradict."""
        self.check_steps(total_steps)
        low: dict[str, int] = {}  # layers that are low-rank, since which step
        seen: set[tuple[int, str]] = set()
        for i, entry in sorted(enumerate(self.schedule), key=lambda item: item[1]["step"]):
            where, step, action = f"svd_policy.schedule[{i}]", entry["step"], entry["action"]
            for move in self._moves(entry, shapes, where):
                name = move.layer
                if (step, name) in seen:
                    raise UsageError(f"{where} switches {name} at step {step}, as another entry does; keep one.")
                seen.add((step, name))
                if action == "full" and name not in low:
                    raise UsageError(f"{where} makes {name} full at step {step}, and it is full then; take it out.")
                if action != "full" and name in low:
                    raise UsageError(
                        f"{where} makes {name} low-rank at step {step}, and it is so since step {low[name]}; "
                        f"make it full in between."
                    )
                low.pop(name, None)
                if move.rank is not None:
                    low[name] = step
                    if action == "compress":
                        check_saves(move.rank, name, shapes[name], f"{where}.rank")

    def due(self, step: int, total_steps: int, shapes: Shapes) -> Sequence[Move]:
        """The moves of the entries for this step, in module order."""
        moves = [move for entry in self.schedule if entry["step"] == step for move in self._moves(entry, shapes, "")]
        place = list(shapes).index
        return sorted(moves, key=lambda move: place(move.layer))

    def _moves(self, entry: Mapping[str, Any], shapes: Shapes, where: str) -> Iterator[Move]:
        asked = entry.get("layers", "all")
        for name in list(shapes) if asked == "all" else matching(list(shapes), asked, f"{where}.layers"):
            full = entry["action"] == "full"
            rank = None if full else rank_for(entry["rank"], shapes[name], f"{where}.rank")
            yield Move(name, entry["action"], rank, "scheduled")
