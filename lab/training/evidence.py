"""What training data says about each layer before the first step: gathered once, on training examples only."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lab.data.encode import Sample
from lab.errors import UsageError
from lab.init import Evidence, Need
from lab.layer import Target, weight_of
from lab.training.evaluate import batches_of
from lab.training.loader import collate
from lab.training.loss import LabelGate, token_loss


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
) -> dict[str, Evidence]:
    """The Evidence each target needs, from a few training examples; the net comes back as it was.

    Gradients are of the mean loss over the labelled tokens, float32, (out, in); activations are the mean of x xᵀ over
    all real tokens that reach the layer. Raises UsageError where a gradient is not finite, naming the layer.
    """
    known: frozenset[Need] = frozenset({"gradient", "activations"})
    if needs - known:
        raise UsageError(f"evidence {', '.join(sorted(needs - known))} cannot be gathered in a plain run.")
    if not needs:
        return {target.name: Evidence() for target in targets}
    if not samples:
        raise UsageError("this init or rank strategy looks at training data, and the data set has no training side.")
    modules = dict(net.named_modules())
    gradients: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    real: list[Tensor] = []  # which positions of the batch in flight are real tokens
    handles = []
    frozen = {name: p.requires_grad for name, p in net.named_parameters()}
    for p in net.parameters():
        p.requires_grad_(False)
    for target in targets:
        module = modules[target.name]
        if "gradient" in needs:
            module.weight.requires_grad_(True)
            handles.append(module.weight.register_post_accumulate_grad_hook(_adder(gradients, target, module)))
        if "activations" in needs:
            handles.append(module.register_forward_pre_hook(_observer(moments, rows, real, target.name)))
    gate = LabelGate(net)
    labels = 0
    was_training = net.training
    net.eval()
    try:
        with torch.set_grad_enabled("gradient" in needs):
            for batch in batches_of(samples, tokens=4096):
                tensors = {key: value.to(device) for key, value in collate(batch, pad_id).items()}
                lengths = torch.tensor([len(sample.input_ids) for sample in batch], device=device)
                real[:] = [torch.arange(tensors["input_ids"].shape[1], device=device) < lengths[:, None]]
                nats = token_loss(net, gate, **tensors)
                if "gradient" in needs:
                    nats.backward()
                labels += sum(int((sample.labels != -100).sum()) for sample in batch)
    finally:
        net.train(was_training)
        for handle in handles:
            handle.remove()
        for name, p in net.named_parameters():
            p.requires_grad_(frozen[name])
            p.grad = None
    out = {}
    for target in targets:
        gradient = gradients[target.name] / labels if "gradient" in needs else None
        activation = moments[target.name] / rows[target.name] if "activations" in needs else None
        for what, tensor in (("gradient", gradient), ("activations", activation)):
            if tensor is not None and not torch.isfinite(tensor).all():
                raise UsageError(
                    f"the {what} of {target.name} is not finite; lower precision or bad data? Nothing was trained."
                )
        out[target.name] = Evidence(gradient=gradient, activations=activation, num_tokens=labels)
    return out


def _adder(gradients: dict[str, Tensor], target: Target, module: nn.Module):  # type: ignore[no-untyped-def]
    def hook(weight: Tensor) -> None:
        assert weight.grad is not None
        gradient = (weight.grad.T if target.transposed else weight.grad).float()
        gradients[target.name] = gradients[target.name] + gradient if target.name in gradients else gradient.clone()
        weight.grad = None

    assert weight_of(module).shape == target.shape
    return hook


def _observer(moments: dict[str, Tensor], rows: dict[str, int], real: list[Tensor], name: str):  # type: ignore[no-untyped-def]
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach()[real[0]].float()
        moment = x.T @ x
        moments[name] = moments[name] + moment if name in moments else moment
        rows[name] = rows.get(name, 0) + len(x)

    return hook


def average_over_ranks(evidence: dict[str, Evidence]) -> dict[str, Evidence]:
    """The mean of every tensor over the processes; a no-op in a single one."""
    if not (dist.is_available() and dist.is_initialized()):
        return evidence
    for item in evidence.values():
        for tensor in (item.gradient, item.activations):
            if tensor is not None:
                dist.all_reduce(tensor)
                tensor /= dist.get_world_size()
    return evidence
