"""The one LightningModule: loss of the global batch, gradient norm, and a state dict without the frozen base."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lab.adapter.state import adapter_state, load_adapter_state
from lab.config import RunConfig
from lab.editors.adalora import AdaptiveRanks
from lab.training.hardware import Resolved
from lab.training.interrupt import Diverged
from lab.training.loss import Scorer, first_bad_module
from lab.training.optim import make_lr_lambda, make_optimizer, verify_trained


@dataclass
class Progress:
    """What a run has done so far; part of every checkpoint."""

    step: int = 0  # optimizer steps taken
    tokens: int = 0  # real tokens trained on, padding not counted
    best_val_loss: float | None = None
    best_step: int | None = None
    train_loss: float | None = None  # of the last logged step
    train_seconds: float = 0.0  # in training steps, evaluations not counted
    eval_seconds: float = 0.0  # in evaluations, the base's among them
    seconds: float = 0.0  # wall clock since the run's start; after a resume, on top of what the checkpoint had


class CausalLM(LightningModule):
    """A causal language model in training.

    The loss of a step is Σ token losses / labelled tokens of the global batch, times the batch's share of a full one,
    however the batch is split over micro-batches and processes.
    """

    def __init__(self, net: Any, config: RunConfig, hardware: Resolved, total_steps: int, structure: dict[str, Any]):
        super().__init__()
        self.net = net
        self.config, self.hardware = config, hardware
        self.total_steps = total_steps
        self.structure = structure  # plain types: what must be rebuilt before a checkpoint's weights load
        self.progress = Progress()
        mixed = hardware.precision == "bf16-mixed" and config.method == "full"  # LoRA's base is kept in bf16 itself
        self.scorer = Scorer(net, hardware.device, autocast=mixed)
        self.step_nats = 0.0  # sum of this process's token losses in the step so far
        self.step_batch: dict[str, Any] = {}
        self.grad_norm = float("nan")
        self.adaptive: AdaptiveRanks | None = None  # AdaLoRA, where the rank strategy is it
        self.orthogonality = float("nan")  # AdaLoRA's regulariser at this step, unweighted and in no logged loss

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """This micro-batch's part of the loss, scaled so that Lightning's averages give the sum."""
        if batch_idx % self.hardware.accumulate == 0:
            self.step_nats = 0.0
        self.step_batch = batch
        # Dropout is a function of (seed, step, slot), so resuming needs no generator state.
        torch.manual_seed((self.config.seed * 1_000_003 + batch["step"] * 4_099 + batch["slot"]) % 2**63)
        if batch["input_ids"].numel() == 0:  # a small last batch of an epoch leaves slots empty
            nats = sum(
                (p.sum() * 0.0 for p in self.parameters() if p.requires_grad), torch.zeros((), device=self.device)
            )
        else:
            nats = self.scorer.nats(batch["input_ids"], batch["labels"])
        value = float(nats.detach())
        if value != value or value in (float("inf"), float("-inf")):
            with torch.compiler.set_stance("force_eager"):  # a compiled block would not call the hooks of its parts
                bad = first_bad_module(self.net, self.scorer.gate, batch["input_ids"], batch["labels"])
            raise Diverged("the training loss", batch["step"] + 1, batch["examples"], bad)
        self.step_nats += value
        scale = batch["share"] / max(1, batch["denominator"])
        loss = nats * (scale * self.hardware.accumulate * self.hardware.devices)
        if self.adaptive is not None and batch_idx % self.hardware.accumulate == 0:  # once a step, in each process
            regulariser = self.adaptive.orthogonality()
            self.orthogonality = float(regulariser.detach())
            loss = loss + regulariser * (self.adaptive.strategy.orthogonality * self.hardware.accumulate)
        return loss

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Measure the global norm, refuse what is not finite, and clip."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.grad_norm = float(norm)
        if not torch.isfinite(norm):
            bad = next(n for n, p in self.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all())
            raise Diverged("the gradient", self.step_batch["step"] + 1, self.step_batch["examples"], bad)
        limit = self.config.optim.max_grad_norm
        if limit > 0 and self.grad_norm + 1e-6 > limit:  # else torch would multiply every gradient by 1
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)

    def configure_optimizers(self) -> Any:
        """AdamW with a per-step schedule."""
        optimizer = make_optimizer(self.net, self.config.optim, self.device)
        verify_trained(self.net, optimizer)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, make_lr_lambda(self.config.schedule, self.total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """With adapters only they are state: the base is frozen and named by its hash."""
        if self.config.method == "lora":
            return dict(adapter_state(self.net))
        return dict(self.net.state_dict())

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` gave; raises where keys are missing or unexpected."""
        if self.config.method == "lora":
            return load_adapter_state(self.net, state_dict)
        return self.net.load_state_dict(state_dict, strict=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Structure and progress travel with the weights, in plain types."""
        checkpoint["structure"] = self.structure
        checkpoint["progress"] = asdict(self.progress)
        if self.adaptive is not None:
            checkpoint["adaptive"] = self.adaptive.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the progress and AdaLoRA's averages; the structure was rebuilt before."""
        self.progress = Progress(**checkpoint["progress"])
        if self.adaptive is not None:
            self.adaptive.load_state(checkpoint["adaptive"])
