"""Start of the editors that a run's strategy asks for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.adapter.structured import Structured
from lab.editors import Editor
from lab.editors.adalora import AdaloraEditor
from lab.editors.adalora_file import AdaloraFile
from lab.errors import UsageError
from lab.init import InitScheme
from lab.init.adalora import Triplets
from lab.layer import Target
from lab.rank_strategy import RankStrategy
from lab.rank_strategy.adalora import Adalora
from lab.training.step import Instrument


@dataclass
class Started:
    """Editors, and the instruments that show what they do."""

    editors: list[Editor] = field(default_factory=list)
    instruments: list[Instrument] = field(default_factory=list)


def first_scheme(strategy: RankStrategy, scheme: InitScheme) -> tuple[InitScheme, bool]:
    """What fills the pairs before an editor changes them, and whether there are values between the factors.

    Raises UsageError for a scheme that would not be used.
    """
    if not isinstance(strategy, Adalora):
        return scheme, False
    if getattr(scheme, "label", None) != "random":
        raise UsageError(
            f"rank_strategy=adalora fills its triplets itself, with a product of 0, and init={type(scheme).__name__} "
            "would not be used; choose init=random."
        )
    return Triplets(), True


def start(
    strategy: RankStrategy | None, model: Structured, targets: Sequence[Target], rank: int, steps: int, run_dir: Path
) -> Started:
    """The editors of a run; none where nothing changes its structure in training."""
    if not isinstance(strategy, Adalora):
        return Started()
    editor = AdaloraEditor(model.net, targets, strategy, rank, steps)
    return Started([editor], [AdaloraFile(run_dir, editor)])
