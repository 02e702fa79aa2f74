"""Advice from one run, or before any: a rank, a learning rate. It is no verdict; studies give those."""
