"""Report of runs and studies, from their directories: no torch. load_run and load_study are the way in."""

from lab.report.run import load_run
from lab.report.study import load_study

__all__ = ["load_run", "load_study"]
