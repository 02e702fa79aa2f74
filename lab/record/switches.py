"""Arithmetic of switched layers that a run foresees by and its report counts by."""

RIDES_ALONG = 2 / 3  # of a full layer's two passes: a frozen weight beside the pair, which needs no gradient
