"""The error of a model that is not as planned."""


class Mismatch(RuntimeError):
    """What was read back from a live model or a saved folder differs from what was asked; the run stops on it."""
