"""Figures of a study. A new one is one file here that defines a Drawing; the report finds it and shows it."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules

from matplotlib import rc_context
from matplotlib.figure import Figure

from lab.report.analysis import Analysis
from lab.report.figure import style


@dataclass(frozen=True)
class Drawing:
    """One figure of the report: how it is drawn, and what stands around it."""

    draw: Callable[[Analysis], Figure | None]  # None where the study has nothing to draw
    caption: str
    section: str  # heading of the report under which it is shown
    nothing: str  # why there is nothing to draw, as a phrase; empty where a study without it need not say so
    more: Callable[[Analysis], str] | None = None  # what the caption adds of a study, as sentences; empty for nothing

    @property
    def name(self) -> str:
        """Stem of its files: the function that draws it."""
        return self.draw.__name__

    def caption_of(self, analysis: Analysis) -> str:
        """The caption of this study's figure."""
        return f"{self.caption} {self.more(analysis) if self.more else ''}".rstrip()

    def figure(self, analysis: Analysis) -> Figure | None:
        """The figure in the house style, whatever the caller's own settings are."""
        with rc_context(style.RC):
            return self.draw(analysis)

    def column(self, analysis: Analysis) -> Figure | None:
        """The same figure in the width of a paper's column."""
        with rc_context(style.COLUMN_RC):
            return self.draw(analysis)


def drawings() -> list[Drawing]:
    """Every Drawing of the files beside this one: files by name, and in a file as it defines them."""
    modules = [import_module(f"{__name__}.{file.name}") for file in iter_modules(__path__)]
    return [value for module in modules for value in vars(module).values() if isinstance(value, Drawing)]
