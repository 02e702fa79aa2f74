"""Structure of a model: plain types."""

from typing import Literal

Offset = Literal["separate", "fold", "none"]
