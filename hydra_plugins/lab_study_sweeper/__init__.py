"""Hydra's way to lab.sweep. Hydra imports this at every start, so nothing heavy is imported here."""

from hydra_plugins.lab_study_sweeper.study_sweeper import StudySweeper

__all__ = ["StudySweeper"]
