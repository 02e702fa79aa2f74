"""Editing of a run: its editors act after each step, and every edit is read back and counted."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lab.adapter.structured import Structured
from lab.editors import ActsInSteps, Edit, Editor, EditsAtStart
from lab.process import heartbeat
from lab.record import RunRecord
from lab.training.callbacks import AfterStep
from lab.training.distributed import all_reduce
from lab.training.module import CausalLM


class Editing(AfterStep):
    """The editors of a run, in their order."""

    def __init__(self, editors: Sequence[Editor], model: Structured) -> None:
        self.editors, self.model = list(editors), model
        self.switches = 0  # modules that went from full to low rank, or back

    def loss_terms(self, scale: int) -> list[Tensor]:
        """What the editors add to a step's objective, times a number."""
        terms = (editor.loss_term(scale) for editor in self.editors)
        return [term for term in terms if term is not None]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Before the first step of a run an editor may act too; before any, attach those that act in steps."""
        for editor in self.editors:
            if isinstance(editor, ActsInSteps):
                editor.attach(trainer.optimizers[0])
        if pl_module.run.progress.step == 0:
            early = (each for each in self.editors if isinstance(each, EditsAtStart))
            self._take_up(trainer, pl_module, (editor.before_first_step(trainer.optimizers[0]) for editor in early))

    def after_step(self, trainer: Trainer, module: CausalLM, batch: dict[str, Any]) -> None:
        """Let each editor act; raises Mismatch where a live module is not what an edit says."""
        step, optimizer = trainer.global_step, trainer.optimizers[0]
        self._take_up(trainer, module, (editor.after_step(step, optimizer) for editor in self.editors))

    @heartbeat.long()
    def _take_up(self, trainer: Trainer, module: CausalLM, made: Iterable[Sequence[Edit]]) -> None:
        """Read each edit back, count switches, and wrap the model for DDP anew where its parameters are others."""
        reshaped = False
        for edits in made:
            for edit in edits:
                before = self.model.structure.layers[edit.module]
                self.switches += (edit.form.form == "full") != (before.form == "full")
                reshaped |= any(getattr(edit.form, what) != getattr(before, what) for what in ("form", "rank", "since"))
                self.model.change(edit.module, edit.form)
        strategy: Any = trainer.strategy
        if reshaped and isinstance(strategy.model, DistributedDataParallel):
            strategy.model = module  # the old wrapper goes, and its hooks with it
            strategy.configure_ddp()

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


@torch.no_grad()
def batch_loss(module: CausalLM) -> float | None:
    """Mean token loss of the last micro-batches over all processes, as the weights are now, without dropout.

    It draws nothing. None before the first, and where they hold no labelled token.
    """
    if not module.step_batch:
        return None
    ids, labels = module.step_batch["input_ids"], module.step_batch["labels"]
    sums = torch.zeros(2, dtype=torch.float64, device=module.hardware.device)
    if ids.numel():
        module.net.eval()
        sums[0], sums[1] = module.scorer.nats(ids, labels).double(), (labels[:, 1:] != -100).sum()
        module.net.train()
    all_reduce(sums)
    return float(sums[0] / sums[1]) if float(sums[1]) else None
