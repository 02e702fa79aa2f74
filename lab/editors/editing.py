"""Editing of a run: its editors act after each step, and every edit is read back and counted."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lab.adapter.structured import Structured
from lab.editors import Editor
from lab.record import RunRecord
from lab.training.callbacks import AfterStep
from lab.training.module import CausalLM


class Editing(AfterStep):
    """The editors of a run, in their order."""

    def __init__(self, editors: Sequence[Editor], model: Structured) -> None:
        self.editors, self.model = list(editors), model
        self.switches = 0  # modules that took another form

    def loss_terms(self, scale: int) -> list[Tensor]:
        """What the editors add to a step's objective, times a number."""
        terms = (editor.loss_term(scale) for editor in self.editors)
        return [term for term in terms if term is not None]

    def after_step(self, trainer: Trainer, module: CausalLM, batch: dict[str, Any]) -> None:
        """Let each editor act; raises Mismatch where a live module is not what an edit says."""
        for editor in self.editors:
            for edit in editor.after_step(trainer.global_step, trainer.optimizers[0]):
                self.switches += edit.form.form != self.model.structure.layers[edit.module].form
                self.model.change(edit.module, edit.form)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """What the editors and the count need to go on."""
        states = {editor.name: editor.state_dict() for editor in self.editors}
        checkpoint["editors"] = {"switches": self.switches, "states": states}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint; those of before 2026-11-28 had one editor, and kept its state elsewhere."""
        saved = checkpoint.get("editors") or {"switches": 0, "states": {"adalora": checkpoint.get("adaptive")}}
        self.switches = saved["switches"]
        for editor in self.editors:
            editor.load_state_dict(saved["states"][editor.name])

    def finish(self, record: RunRecord) -> None:
        """Record what the editors left, and how many modules took another form."""
        for editor in self.editors:
            editor.finish(record)
        record.switches = self.switches
