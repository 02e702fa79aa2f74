"""Statistics of each layer before the first step, gathered once, on training examples only: gradients, activations."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from lab.data.encode import Sample
from lab.errors import UsageError
from lab.layer import Evidence, Need, Target
from lab.process import heartbeat
from lab.training.distributed import all_reduce, rank, world
from lab.training.evaluate import batches_of
from lab.training.loader import collate
from lab.training.loss import LabelGate, token_loss
from lab.training.progress import console

GATHERED: frozenset[Need] = frozenset({"gradient", "gradient_square", "activations"})
TOKENS_PER_BATCH = 2048  # padded; a backward pass keeps its activations, so half of what an evaluation takes
SHARE_OF_FREE_MEMORY = 0.5  # of a GPU's free memory may hold sums; the rest is for the backward pass


def choose(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """`count` training examples (or all there are), drawn with a private generator."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    return [samples[i] for i in order[:count].tolist()]


def gather(
    net: nn.Module,
    targets: Sequence[Target],
    samples: Sequence[Sample],
    needs: frozenset[Need],
    pad_id: int,
    device: torch.device,
    sum_bytes: int | None = None,
) -> dict[str, Evidence]:
    """The Evidence each target needs, from a few training examples; the net comes back as it was.

    All float32. `gradient` (out, in) is of the mean loss over all labelled tokens; `gradient_square` (out, in) the
    mean over *examples* of the square of each one's own mean-loss gradient, the diagonal of the empirical Fisher
    information (Kunstner et al. 2019, arXiv:1905.12558), so it takes one backward pass per example; `activations`
    (in, in) is the mean of x xᵀ over all real tokens that reach the layer. Processes share the examples, and every one
    returns the same means. Sums beyond `sum_bytes` (None: half of a GPU's free memory, no limit on a CPU) are gathered
    for a group of layers at a time, a pass over the examples each, and put in host memory: the numbers are the same.
    Raises UsageError without samples, on a packed weight whose gradient is wanted, and naming the first layer where
    something is not finite.
    """
    if needs - GATHERED:
        raise UsageError(f"evidence {', '.join(sorted(needs - GATHERED))} is not known; there are {sorted(GATHERED)}.")
    if not needs:
        return {target.name: Evidence() for target in targets}
    if not samples:
        raise UsageError("this init or rank strategy looks at training data, and the data set has no training side.")
    if sum_bytes is None and device.type == "cuda":
        sum_bytes = int(SHARE_OF_FREE_MEMORY * torch.cuda.mem_get_info(device)[0])
    groups = list(_groups(targets, needs, sum_bytes))
    batches = [[s] for s in samples] if "gradient_square" in needs else list(batches_of(samples, TOKENS_PER_BATCH))
    out: dict[str, Evidence] = {}
    with _frozen(net) as gate, _bar(len(groups) * len(batches), needs) as advance:
        for group in groups:
            sums = _pass(net, gate, group, batches, needs, pad_id, device, advance)
            out |= {target.name: sums.evidence(target, offload=len(groups) > 1) for target in group}
    return out


def _size(target: Target, needs: frozenset[Need]) -> int:
    out, inner = target.shape
    return 4 * (len(needs - {"activations"}) * out * inner + ("activations" in needs) * inner * inner)


def _groups(targets: Sequence[Target], needs: frozenset[Need], limit: int | None) -> Iterator[list[Target]]:
    """Neighbouring targets whose sums fit the limit together; a single one may exceed it."""
    group: list[Target] = []
    used = 0
    for target in targets:
        size = _size(target, needs)
        if group and limit is not None and used + size > limit:
            yield group
            group, used = [], 0
        group.append(target)
        used += size
    yield group


@dataclass
class _Sums:
    """Running sums of one pass over the examples."""

    gradient: dict[str, Tensor] = field(default_factory=dict)
    gradient_square: dict[str, Tensor] = field(default_factory=dict)
    activations: dict[str, Tensor] = field(default_factory=dict)
    rows: int = 0  # real tokens
    labels: int = 0
    examples: int = 0
    real: Tensor | None = None  # (examples, time): which positions of the batch in flight are real tokens
    batch_labels: int = 0

    def adder(self, target: Target, needs: frozenset[Need]) -> Callable[[Tensor], None]:
        """A hook that takes a weight's gradient into the sums and frees it."""

        def hook(weight: Tensor) -> None:
            assert weight.grad is not None
            gradient = (weight.grad.T if target.transposed else weight.grad).float()
            if "gradient" in needs:
                self.gradient[target.name].add_(gradient)
            if "gradient_square" in needs:
                self.gradient_square[target.name].addcmul_(gradient, gradient, value=max(1, self.batch_labels) ** -2)
            weight.grad = None

        return hook

    def observer(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        """A hook that takes a layer's inputs into the sum of x xᵀ."""

        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach()[self.real].float()
            self.activations[name].addmm_(x.T, x)

        return hook

    def share(self, device: torch.device) -> None:
        """Add up over the processes."""
        for sums in (self.gradient, self.gradient_square, self.activations):
            for tensor in sums.values():
                all_reduce(tensor)
        counts = torch.tensor([self.rows, self.labels, self.examples], device=device)
        all_reduce(counts)
        self.rows, self.labels, self.examples = counts.tolist()

    def evidence(self, target: Target, offload: bool) -> Evidence:
        """The means of one layer; raises UsageError where one is not finite."""
        means: dict[str, Tensor] = {}
        for what, count in (
            ("gradient", self.labels),
            ("gradient_square", self.examples),
            ("activations", self.rows),
        ):
            total: Tensor | None = getattr(self, what).pop(target.name, None)
            if total is None:
                continue
            mean = total / count
            if not bool(torch.isfinite(mean).all()):
                raise UsageError(
                    f"the {what} of {target.name} is not finite on the training examples, so nothing was trained; look "
                    f"for broken weights or data, or raise hardware.precision."
                )
            means[what] = mean.cpu() if offload else mean
        return Evidence(**means, num_tokens=self.labels)


@heartbeat.strict()
def _pass(
    net: nn.Module,
    gate: LabelGate,
    group: Sequence[Target],
    batches: Sequence[list[Sample]],
    needs: frozenset[Need],
    pad_id: int,
    device: torch.device,
    advance: Callable[[], None],
) -> _Sums:
    """One pass over this process's share of the batches, for a group of layers."""
    sums, handles = _Sums(), []
    backward = bool(needs & {"gradient", "gradient_square"})
    modules: dict[str, Any] = dict(net.named_modules())
    for target in group:
        module = modules[target.name]
        if backward:
            if not module.weight.is_floating_point():
                raise UsageError(
                    f"{target.name} is quantised and has no gradient; load the base unquantised, or choose an init and "
                    f"a rank strategy that look at weights or activations."
                )
            module.weight.requires_grad_(True)
            handles.append(module.weight.register_post_accumulate_grad_hook(sums.adder(target, needs)))
        if "activations" in needs:
            sums.activations[target.name] = torch.zeros(target.shape[1], target.shape[1], device=device)
            handles.append(module.register_forward_pre_hook(sums.observer(target.name)))
        for what in needs - {"activations"}:
            getattr(sums, what)[target.name] = torch.zeros(target.shape, device=device)
    try:
        with torch.set_grad_enabled(backward):
            for i, batch in enumerate(batches):
                advance()
                if i % world() != rank():
                    continue
                tensors = {key: value.to(device) for key, value in collate(batch, pad_id).items()}
                lengths = torch.tensor([len(sample.input_ids) for sample in batch], device=device)
                sums.real = torch.arange(tensors["input_ids"].shape[1], device=device) < lengths[:, None]
                sums.batch_labels = sum(int((sample.labels[1:] != -100).sum()) for sample in batch)
                nats = token_loss(net, gate, **tensors)
                if backward:
                    nats.backward()  # type: ignore[no-untyped-call]
                sums.rows += int(lengths.sum())
                sums.labels += sums.batch_labels
                sums.examples += len(batch)
    finally:
        for handle in handles:
            handle.remove()
        for target in group:
            modules[target.name].weight.requires_grad_(False)
    sums.share(device)
    return sums


@contextmanager
def _frozen(net: nn.Module) -> Iterator[LabelGate]:
    """The net frozen, in eval mode and gated; given back as it was."""
    trainable = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    was_training = net.training
    net.requires_grad_(False).eval()
    try:
        with LabelGate(net) as gate:
            yield gate
    finally:
        net.train(was_training)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(trainable[name])
            parameter.grad = None


@contextmanager
def _bar(total: int, needs: frozenset[Need]) -> Iterator[Callable[[], None]]:
    """A bar over the batches on a terminal, nothing elsewhere."""
    what = ", ".join(sorted(needs)).replace("_", " ")
    columns = (TextColumn(f"gathering {what}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
