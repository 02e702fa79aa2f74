"""Verdicts that may be looked at after every seed, the search for learning rates before them, and what both err."""
