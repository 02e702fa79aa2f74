"""Processes of a job: signs of life, hangs, workers, the process group, and which GPU is free. No torch."""
