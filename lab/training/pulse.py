"""Signs of life of a model's own work."""

from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import nn

from lab.process import heartbeat


def beat_at_every_pass(net: nn.Module) -> None:
    """Count the forward passes of a causal language model: batches in training and evaluation, tokens in generation.

    At the head, which every pass goes through as a module: adapters call the model's own forward past its hooks.
    """
    net.get_output_embeddings().register_forward_pre_hook(_beat)  # type: ignore[operator]


def _beat(module: nn.Module, args: tuple[Any, ...]) -> None:
    heartbeat.beat()


class Pulse(Callback):
    """While batches are trained on, they alone are signs of life: a GPU that hangs keeps its processor busy waiting."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        heartbeat.own.strict = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        heartbeat.beat()

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        heartbeat.own.strict = False
