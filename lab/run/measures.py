"""Measures of a run besides its losses: one that fails is an entry in the record, and not the run's end."""

import logging
from collections.abc import Callable, Mapping

from rich.text import Text

from lab.record import RunRecord
from lab.training.interrupt import Interrupted
from lab.training.progress import console

log = logging.getLogger(__name__)


def attempt(result: RunRecord, name: str, measure: Callable[[], Mapping[str, float | None]], aloud: bool) -> None:
    """Take a measure; its failure is logged with the traceback, recorded under its name, and `aloud` said."""
    try:
        result.metrics |= measure()
        result.failed_measures.pop(name, None)  # of an earlier start
    except Interrupted:
        raise
    except Exception as error:
        result.failed_measures[name] = f"{type(error).__name__}: {error}"
        log.exception("%s could not be measured", name)
        if aloud:
            console.print(Text(f"{name} could not be measured: {result.failed_measures[name]}", style="red"))
