"""Story of an optimizer step: who acts around it, in which order, from its first micro-batch to its checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, Trainer

from lab.training.callbacks import AfterStep, Checkpoints, Monitor, StopOnRequest
from lab.training.module import CausalLM


class Instrument(AfterStep):
    """Reads a run in training; writes files, records and dashboards, and nothing that trains."""

    def before_step(self, trainer: Trainer, module: CausalLM) -> None:
        """Before the first micro-batch of a step."""

    def gradients_ready(self, trainer: Trainer, module: CausalLM) -> None:
        """All gradients of the step are there, unclipped."""

    def finish(self, checkpoint: dict[str, Any] | None) -> None:
        """Training has ended, perhaps in an earlier process, whose last checkpoint it then was; on every process."""


@dataclass(frozen=True)
class StepOrder:
    """All who act after a step, each seeing what those before it have done."""

    instruments: Sequence[Instrument]  # what they measure, editors may decide by
    editors: AfterStep  # the only writers of structure
    boards: Sequence[Instrument]  # show what the editors did
    monitor: Monitor
    checkpoints: Checkpoints
    stop: StopOnRequest

    def callbacks(self) -> list[Callback]:
        """For the Trainer: the step, and each part's own starts, ends and state."""
        readers = [*self.instruments, self.editors, *self.boards]
        return [Step(self), *readers, self.monitor, self.checkpoints, self.stop]


class Step(Callback):
    """An optimizer step, told from top to bottom as Lightning calls it.

    A micro-batch that is not the step's last adds to the gradients and does no more.
    """

    def __init__(self, order: StepOrder) -> None:
        self.order = order

    # 1. loader.MicroBatches gives this process its part of the global batch.

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """2. Instruments get ready to read this step's gradients."""
        if batch_idx % pl_module.hardware.accumulate == 0:
            for instrument in self.order.instruments:
                instrument.before_step(trainer, pl_module)

    # 3. CausalLM.training_step: the loss over the global batch's labelled tokens, with the editors' terms; backward.

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        """4. Instruments read the gradients, before anything changes."""
        for instrument in self.order.instruments:
            instrument.gradients_ready(trainer, pl_module)

    # 5. CausalLM.configure_gradient_clipping: the global norm, refused where it is not finite, clipped.
    # 6. The optimizer steps, then the schedule of the learning rate.

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """7. Instruments read, editors change the structure, the monitor evaluates and logs; then all is saved."""
        if (batch_idx + 1) % pl_module.hardware.accumulate != 0:
            return
        order = self.order
        for instrument in order.instruments:
            instrument.after_step(trainer, pl_module, batch)
        order.editors.after_step(trainer, pl_module, batch)
        for board in order.boards:
            board.after_step(trainer, pl_module, batch)
        order.monitor.after_step(trainer, pl_module, batch)
        order.checkpoints.after_step(trainer, pl_module, batch)
        order.stop.after_step(trainer, pl_module, batch)
