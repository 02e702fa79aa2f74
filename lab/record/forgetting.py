"""Forgetting along a run: the loss on a retention text at each evaluation, and what it was at a validation loss."""

from collections.abc import Sequence

FILE = "retention.csv"
COLUMNS = ("step", "val_loss", "retention_loss")


def at_loss(losses: Sequence[float], values: Sequence[float], level: float) -> float | None:
    """The value where a loss first came down to a level, on the line between the evaluations around it.

    `losses` and `values` are those of each evaluation, in order. None where no loss was as low.
    """
    for i, loss in enumerate(losses):
        if loss <= level:
            if i == 0 or loss == level:
                return values[i]
            share = (losses[i - 1] - level) / (losses[i - 1] - loss)
            return values[i - 1] + share * (values[i] - values[i - 1])
    return None
