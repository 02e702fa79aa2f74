"""The dashboard of an observed run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lab.layer import Target
from lab.ledger import Row
from lab.svd_policy.decisions import Decided
from lab.svd_policy.observing import Observing


class SpectralBoard:
    def __init__(self, loggers: Sequence[Any], targets: Sequence[Target], policy: Observing) -> None:
        self.loggers = loggers

    def start(self) -> None: ...

    def tick(self, step: int, rows: Sequence[Row], recent: Iterable[Decided], cost: Mapping[str, float]) -> None: ...
