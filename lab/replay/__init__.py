"""Replay of a policy's decisions over recorded spectra."""
