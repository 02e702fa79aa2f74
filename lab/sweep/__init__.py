"""Sweep: the stages of a declared study as a pure plan, and the loop that carries it out. No torch."""
