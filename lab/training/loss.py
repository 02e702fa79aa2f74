"""The loss: token losses summed at labelled positions only, and the gate that skips all other logits."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.model import base_of
from lab.training.head_loss import LARGE_VOCABULARY, head_loss, softcap

log = logging.getLogger(__name__)


class LabelGate:
    """Lets only labelled positions through to the output head, so that no other logits are ever computed.

    Works for any causal LM whose head is `get_output_embeddings()`: whatever follows the head (a softcap, say) is
    elementwise and sees (1, labelled, vocabulary) instead of (batch, time, vocabulary). A plain linear head over a
    large vocabulary lets no position through at all: its loss is taken from what was about to enter it.
    """

    def __init__(self, net: nn.Module) -> None:
        self.head = net.get_output_embeddings()  # type: ignore[operator]
        if self.head is None:
            raise ValueError(f"{type(net).__name__} has no output head; only causal language models can be trained.")
        self.cap: float | None = getattr(getattr(net, "config", None), "final_logit_softcapping", None)
        self.mask: Any = None  # whatever picks positions from (batch, time)
        self.entering: Tensor | None = None  # (labelled, width), where the head is passed by
        self.scale = 1.0  # what the loss will be multiplied by before backward, which spares a pass if it is right
        self.buffers: dict[str, Tensor] = {}  # of the pass over the head's logits
        self.planned_for: str | None = None  # see head_loss
        plain = type(self.head) is nn.Linear and self.head.bias is None
        self.passes_by = plain and self.head.out_features >= LARGE_VOCABULARY and self._only_caps(net)
        self._handle = self.head.register_forward_pre_hook(self._select)

    def __enter__(self) -> "LabelGate":
        return self

    def __exit__(self, *exception: object) -> None:
        """Take the gate off the head."""
        self._handle.remove()

    def _select(self, head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.mask is None:
            return None
        chosen = args[0][self.mask]
        if self.passes_by:
            self.entering = chosen
            chosen = chosen[:0]
        return (chosen.unsqueeze(0), *args[1:])

    @contextmanager
    def only(self, mask: Any) -> Iterator[None]:
        """Within the context the head sees just the positions that mask picks from (batch, time), or none at all."""
        self.mask = mask
        try:
            yield
        finally:
            self.mask = self.entering = None

    def _only_caps(self, net: nn.Module) -> bool:
        """True where the model does nothing to logits but the softcap: one word is run, known logits as its head's."""
        weight: Tensor = self.head.weight
        ramp = torch.linspace(-60.0, 60.0, len(weight), device=weight.device)
        known = torch.stack([ramp, ramp.flip(0), torch.zeros_like(ramp)]).to(weight.dtype).unsqueeze(0)
        word = torch.zeros((1, 1), dtype=torch.long, device=weight.device)
        handle = self.head.register_forward_hook(lambda head, args, output: known)
        devices = [weight.device] if weight.is_cuda else []
        try:
            with torch.random.fork_rng(devices), torch.no_grad():  # dropout's draws are not to be missed later
                logits = net(input_ids=word, use_cache=False).logits.float()
        finally:
            handle.remove()
        expected = softcap(known.float(), self.cap)
        tolerance = 4 * torch.finfo(known.dtype).eps * float(expected.abs().max())
        same = logits.shape == expected.shape and torch.allclose(logits, expected, rtol=0, atol=tolerance)
        if not same:
            log.info("%s does more to logits than a softcap: all labelled logits are held.", type(net).__name__)
        return same


def token_loss(net: nn.Module, gate: LabelGate, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross-entropy, in nats, over the labelled tokens of input_ids (batch, time); float32 scalar.

    labels (batch, time) is aligned with input_ids and -100 where a token is not predicted; the shift happens here.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=-100)
    mask = targets != -100
    return loss_at(net, gate, input_ids, mask, targets[mask])


def loss_at(net: nn.Module, gate: LabelGate, input_ids: Tensor, where: Any, targets: Tensor) -> Tensor:
    """Sum of the cross-entropy, in nats, of targets (labelled,); `where` picks their positions from (batch, time)."""
    with gate.only(where):
        logits = net(input_ids=input_ids, use_cache=False).logits
        if gate.entering is not None:
            given = (gate.cap, gate.scale, gate.buffers, gate.planned_for)
            return head_loss(gate.entering, gate.head.weight, targets, *given)
    return F.cross_entropy(logits.squeeze(0).float(), targets, reduction="sum")


class Scorer:
    """A causal LM and how its losses are computed: gate, device, and autocast where weights are kept in float32."""

    def __init__(self, net: nn.Module, device: torch.device, autocast: bool) -> None:
        self.net, self.device, self.autocast = net, device, autocast
        self.gate = LabelGate(base_of(net))

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *exception: object) -> None:
        """Take the gate off the model's head."""
        self.gate.__exit__(*exception)

    def nats(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Sum of token losses, in nats, at the labelled positions of a batch (examples, time)."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            return token_loss(self.net, self.gate, input_ids, labels)


def first_bad_module(net: nn.Module, gate: LabelGate, input_ids: Tensor, labels: Tensor) -> str | None:
    """The first module, in order of execution, whose output is not finite on a batch; None where all are."""
    bad: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple | list) else [output]
            if any(isinstance(t, Tensor) and t.is_floating_point() and not torch.isfinite(t).all() for t in tensors):
                bad.append(name)

        return hook

    handles = [m.register_forward_hook(look(name)) for name, m in net.named_modules() if not list(m.children())]
    try:
        with torch.no_grad():
            loss = token_loss(net, gate, input_ids, labels)
    finally:
        for handle in handles:
            handle.remove()
    if not bad and not torch.isfinite(loss):  # where the head is passed by, its output was never seen
        bad = [name for name, module in net.named_modules() if module is gate.head]
    return bad[0] if bad else None
