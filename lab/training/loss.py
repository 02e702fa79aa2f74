"""The loss: token losses summed at labelled positions only, and the gate that skips all other logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LabelGate:
    """Lets only labelled positions through to the output head, so that no other logits are ever computed.

    Works for any causal LM whose head is `get_output_embeddings()`: whatever follows the head (a softcap, say) is
    elementwise and sees (1, labelled, vocabulary) instead of (batch, time, vocabulary).
    """

    def __init__(self, net: nn.Module) -> None:
        head = net.get_output_embeddings()  # type: ignore[operator]
        if head is None:
            raise ValueError(f"{type(net).__name__} has no output head; only causal language models can be trained.")
        self.mask: Tensor | None = None
        self.handle = head.register_forward_pre_hook(self._select)

    def _select(self, head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return None if self.mask is None else (args[0][self.mask].unsqueeze(0), *args[1:])

    @contextmanager
    def only(self, mask: Tensor) -> Iterator[None]:
        """Within the context the head sees just the positions where mask (batch, time) is True."""
        self.mask = mask
        try:
            yield
        finally:
            self.mask = None


def token_loss(net: nn.Module, gate: LabelGate, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross-entropy, in nats, over the labelled tokens of input_ids (batch, time); float32 scalar.

    labels (batch, time) is aligned with input_ids and -100 where a token is not predicted; the shift happens here.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=-100)
    mask = targets != -100
    with gate.only(mask):
        logits = net(input_ids=input_ids, use_cache=False).logits
    return F.cross_entropy(logits.squeeze(0).float(), targets[mask], reduction="sum")


class Scorer:
    """A causal LM and how its losses are computed: gate, device, and autocast where weights are kept in float32."""

    def __init__(self, net: nn.Module, device: torch.device, autocast: bool) -> None:
        self.net, self.device, self.autocast = net, device, autocast
        self.gate = LabelGate(base_of(net))

    def nats(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Sum of token losses, in nats, at the labelled positions of a batch (examples, time)."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            return token_loss(self.net, self.gate, input_ids, labels)


def base_of(net: Any) -> Any:
    """The transformers model inside a peft wrapper, or the model itself."""
    return net.get_base_model() if hasattr(net, "get_base_model") else net


def first_bad_module(net: nn.Module, gate: LabelGate, input_ids: Tensor, labels: Tensor) -> str | None:
    """The first module, in order of execution, whose output is not finite on a batch; None where all are."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple | list) else [output]
            if any(isinstance(t, Tensor) and t.is_floating_point() and not torch.isfinite(t).all() for t in tensors):
                found.append(name)

        return hook

    handles = [m.register_forward_hook(look(name)) for name, m in net.named_modules() if not list(m.children())]
    try:
        with torch.no_grad():
            token_loss(net, gate, input_ids, labels)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
