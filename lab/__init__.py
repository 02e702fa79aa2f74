"""A lab for low-rank training: LoRA initialisation, rank, and spectra, verified run by run."""

__version__ = "0.1.0"
