"""Run in one process: its model, its training, its record."""
