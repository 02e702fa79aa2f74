"""LightningModule of a causal LM: loss of the global batch, gradient norm, and a state dict without the frozen base."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lab.training.hardware import Resolved
from lab.training.interrupt import Diverged
from lab.training.loss import Scorer, first_bad_module
from lab.training.optim import make_lr_lambda, make_optimizer, set_pairs, verify_trained
from lab.training.pairs import decay_once, total_norm
from lab.training.run import Run

LossTerms = Callable[[int], Iterable[Tensor]]  # of the editors, each times a number


def no_loss_terms(scale: int) -> Iterable[Tensor]:
    """Of a run without editors."""
    return ()


class CausalLM(LightningModule):
    """A causal language model in training.

    The loss of a step is Σ token losses / labelled tokens of the global batch, times the batch's share of a full one,
    however the batch is split over micro-batches and processes.
    """

    def __init__(self, run: Run, hardware: Resolved, loss_terms: LossTerms = no_loss_terms):
        super().__init__()
        self.run, self.hardware = run, hardware
        self.net = run.model.net
        self.loss_terms = loss_terms  # in the objective of each step, and in no logged loss
        self.scorer = Scorer(self.net, hardware.device, autocast=hardware.autocast)
        self.step_nats = 0.0  # sum of this process's token losses in the step so far
        self.step_batch: dict[str, Any] = {}
        self.grad_norm = float("nan")

    def on_train_start(self) -> None:
        """A base comes in evaluation mode, in which its dropout and its gradient checkpointing would do nothing."""
        self.train()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """This micro-batch's part of the loss, scaled so that Lightning's averages give the sum."""
        first = batch_idx % self.hardware.accumulate == 0
        if first:
            self.step_nats = 0.0
        if first or batch["input_ids"].numel():
            self.step_batch = batch
        # Dropout is a function of (seed, step, slot), so resuming needs no generator state.
        torch.manual_seed((self.run.config.seed * 1_000_003 + batch["step"] * 4_099 + batch["slot"]) % 2**63)
        scale = batch["share"] / max(1, batch["denominator"]) * self.hardware.accumulate * self.hardware.devices
        if batch["input_ids"].numel() == 0:  # a small last batch of an epoch leaves slots empty
            nats = sum(
                (p.sum() * 0.0 for p in self.parameters() if p.requires_grad), torch.zeros((), device=self.device)
            )
        else:
            self.scorer.gate.scale = scale / self.hardware.accumulate  # Lightning divides by it
            nats = self.scorer.nats(batch["input_ids"], batch["labels"])
        value = float(nats.detach())
        if value != value or value in (float("inf"), float("-inf")):
            with torch.compiler.set_stance("force_eager"):  # a compiled block would not call the hooks of its parts
                bad = first_bad_module(self.net, self.scorer.gate, batch["input_ids"], batch["labels"])
            raise Diverged("the training loss", batch["step"] + 1, batch["examples"], bad)
        self.step_nats += value
        loss = nats * scale
        if first:  # once a step, in each process
            for term in self.loss_terms(self.hardware.accumulate):
                loss = loss + term
        return loss

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Measure the global norm, refuse what is not finite, and clip; a switched layer counts as one weight."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        switched = self.run.model.switched()
        norm = total_norm(parameters, switched)
        self.grad_norm = float(norm)
        if not torch.isfinite(norm):
            gradients = ((name, p.grad) for name, p in self.named_parameters() if p.grad is not None)
            bad = next((name for name, grad in gradients if not torch.isfinite(grad).all()), None)
            raise Diverged("the gradient", self.step_batch["step"] + 1, self.step_batch["examples"], bad)
        limit = self.run.config.optim.max_grad_norm
        if limit > 0 and self.grad_norm + 1e-6 > limit:  # else torch would multiply every gradient by 1
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        decay_once(optimizer, switched)

    def configure_optimizers(self) -> Any:
        """The config's optimizer over all that trains, with a per-step schedule."""
        config, model = self.run.config, self.run.model
        dtype = self.hardware.compute_dtype
        optimizer = make_optimizer(self.net, config.optim, self.device, model.fast_parameters(), dtype)
        verify_trained(self.net, optimizer)
        set_pairs(optimizer, model.switched())
        self.run.groups = optimizer.param_groups
        factor = make_lr_lambda(config.schedule, self.run.total_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The tensors that a checkpoint needs of the model."""
        return self.run.model.state_dict()

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` gave; raises where keys are missing or unexpected."""
        self.run.model.load_state_dict(state_dict)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Structure, progress and clock travel with the weights, in plain types."""
        checkpoint |= self.run.saved()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore progress and clock; the structure was rebuilt before."""
        self.run.go_on(checkpoint)
