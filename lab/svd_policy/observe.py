"""A policy that records spectra and changes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

from lab.ledger import Row
from lab.svd_policy import Decision, Reach, State
from lab.svd_policy.observing import Observing, default_decision


@dataclass(frozen=True, kw_only=True)
class Observe(Observing):
    """Records every layer's spectrum; training is bitwise what it would be without."""

    @property
    def rules(self) -> Mapping[str, tuple[str, ...]]:
        """Empty: it never acts."""
        return {}

    def decide(self, row: Row, state: State) -> tuple[Decision, State]:
        """Keep the layer as it is."""
        return default_decision(row) or Decision(row.mode, "none", row.rank, (), "observing"), state

    def reach(self, row: Row) -> tuple[Reach, ...]:
        """Empty: there is no clause to hold."""
        return ()
