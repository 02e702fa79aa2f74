"""A policy without any analysis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lab.ledger import Row
from lab.svd_policy import Decision, Reach, State


@dataclass(frozen=True, kw_only=True)
class Never:
    """Measures nothing and changes nothing."""

    every_n_steps: int | None
    target_modules: str | Sequence[str]
    log_layers: int

    @property
    def rules(self) -> Mapping[str, tuple[str, ...]]:
        """Empty: it never acts."""
        return {}

    def decide(self, row: Row, state: State) -> tuple[Decision, State]:
        """Keep the layer as it is."""
        return Decision(row.mode, "none", row.rank, (), "never"), state

    def reach(self, row: Row) -> tuple[Reach, ...]:
        """Empty: there is no clause to hold."""
        return ()
