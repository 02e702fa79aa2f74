"""Instruments read a run in training and write to nothing that trains."""
