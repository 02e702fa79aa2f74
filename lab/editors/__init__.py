"""Editors: the only writers of a model's structure after step 0."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lab.record import RunRecord
from lab.structure import LayerForm


@dataclass(frozen=True)
class Edit:
    """Change of a module to another form."""

    module: str
    form: LayerForm


class Editor(Protocol):
    """Changes the structure in training: decided on rank 0, broadcast, applied on every process, read back."""

    @property
    def name(self) -> str:
        """Its key among the editors of a checkpoint."""
        ...

    def loss_term(self, scale: int) -> Tensor | None:
        """What it adds to a step's objective, times a number; in no logged loss."""
        ...

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> Sequence[Edit]:
        """The edits it made after an optimizer step, counted from 1, while the step's gradients are still there."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the weights, in plain types and tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        ...

    def finish(self, record: RunRecord) -> None:
        """Record what it left, read back; raises Mismatch where it has not acted as scheduled."""
        ...


@runtime_checkable
class ActsInSteps(Protocol):
    """An editor that acts around the optimizer's own step, too, from the start of training or of a resumed one."""

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Register what is to be called before and after each step."""
        ...


@runtime_checkable
class EditsAtStart(Protocol):
    """An editor that may act before the first step, too, when the optimizer has no states yet."""

    def before_first_step(self, optimizer: torch.optim.Optimizer) -> Sequence[Edit]:
        """The edits it made."""
        ...
