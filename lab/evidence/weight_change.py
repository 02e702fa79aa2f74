"""Weight changes that a scheme or a strategy asks for before the run: a warm-up's, a teacher's, a wide run's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from rich.progress import track
from torch import Generator, Tensor, nn

from lab.adapter.build import Scaling, build, planned, scaling_factor
from lab.adapter.delta import delta_factors
from lab.adapter.initialise import generator_for
from lab.adapter.layer import adapted_layers
from lab.config import RunConfig
from lab.data.encode import Sample
from lab.errors import UsageError
from lab.evidence.statistics import TOKENS_PER_BATCH
from lab.layer import Target, weight_of
from lab.model import base_of
from lab.model.pretrained import Pretrained
from lab.rank_strategy import RankPlan
from lab.training.distributed import all_reduce, rank, world
from lab.training.evaluate import batches_of
from lab.training.loader import BatchPlan, collate
from lab.training.loss import LabelGate, token_loss
from lab.training.optim import make_lr_lambda, total_steps
from lab.training.progress import console


@dataclass(frozen=True)
class WeightChange:
    """ΔW of every target, (out, in) float32, and what it cost."""

    delta: dict[str, Tensor]
    sentence: str  # for the record
    tokens: int  # real tokens trained on


def warm_up(
    net: nn.Module,
    targets: Sequence[Target],
    samples: Sequence[Sample],
    config: RunConfig,
    pad_id: int,
    device: torch.device,
    *,
    steps: int,
    lr: float,
) -> WeightChange:
    """ΔW of a short run that trains the targets' whole weights; the net comes back bit for bit.

    AdamW at a constant rate on the first batches that training itself will see, masters in float32 whatever the base
    is. Raises UsageError on quantised weights, and where the run leaves a change that is not finite.
    """
    modules: dict[str, Any] = dict(net.named_modules())
    for target in targets:
        if not modules[target.name].weight.is_floating_point():
            raise UsageError(f"{target.name} is quantised and cannot take a full-rank warm-up; use source=gradient.")
    live = {target.name: modules[target.name].weight for target in targets}
    before = {name: weight.detach().clone() for name, weight in live.items()}
    trainable = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    net.requires_grad_(False)
    masters = {name: weight.detach().float().clone().requires_grad_() for name, weight in live.items()}
    optimizer = torch.optim.AdamW(
        masters.values(), lr=lr, betas=_betas(config), eps=config.optim.eps, weight_decay=config.optim.weight_decay
    )
    plan = BatchPlan([len(s.input_ids) for s in samples], config.schedule.batch_size, config.data_seed)
    tokens = 0
    try:
        for weight in live.values():
            weight.requires_grad_(True)
        for step in track(range(steps), "warm-up", console=console, disable=not console.is_terminal):
            batch = [samples[i] for i in plan.batch(step)]
            tokens += _backward(net, batch, pad_id, device)
            for name, weight in live.items():
                assert weight.grad is not None
                masters[name].grad = weight.grad.float()
                weight.grad = None
            _step(optimizer, list(masters.values()), config)
            with torch.no_grad():
                for name, weight in live.items():
                    weight.copy_(masters[name])
        delta = {}
        for target in targets:
            change = masters[target.name].detach() - before[target.name].float()
            delta[target.name] = change.T.contiguous() if target.transposed else change
    finally:
        with torch.no_grad():
            for name, weight in live.items():
                weight.copy_(before[name])
                weight.grad = None
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(trainable[name])
    sentence = f"change of a full-rank warm-up: {steps} steps of AdamW at {lr:g}, {tokens} tokens"
    return WeightChange(_finite(delta, "the warm-up", "lower init.warmup_lr"), sentence, tokens)


def wide_run(
    net: nn.Module,
    targets: Sequence[Target],
    samples: Sequence[Sample],
    config: RunConfig,
    pad_id: int,
    device: torch.device,
    *,
    ranks: RankPlan,
) -> WeightChange:
    """ΔW of a plain LoRA run at wide ranks, as long as the run itself and on the same batches; the net comes back.

    A Kaiming, B = 0, the run's own optimizer settings and schedule, no dropout, nothing evaluated on the way.
    """
    trainable = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    scaling = scaling_factor(config.alpha, config.rank, cast(Scaling, config.scaling))
    adapted = build(net, planned(targets, ranks, scaling=scaling))
    layers = adapted_layers(adapted)
    with torch.no_grad():
        for name, layer in layers.items():
            generator: Generator = generator_for(config.seed, name)
            bound = layer.A.shape[1] ** -0.5
            layer.A.copy_((2 * torch.rand(layer.A.shape, generator=generator) - 1) * bound)
            layer.B.zero_()
    plan = BatchPlan([len(s.input_ids) for s in samples], config.schedule.batch_size, config.data_seed)
    steps = total_steps(config.schedule, plan.steps_per_epoch)
    A, B = [layer.A for layer in layers.values()], [layer.B for layer in layers.values()]
    groups = [
        {"params": A, "lr": config.optim.rate},
        {"params": B, "lr": config.optim.rate * config.optim.lora_plus_ratio},
    ]
    optimizer = torch.optim.AdamW(
        groups, betas=_betas(config), eps=config.optim.eps, weight_decay=config.optim.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, make_lr_lambda(config.schedule, steps))
    tokens = 0
    for step in track(range(steps), "wide run", console=console, disable=not console.is_terminal):
        tokens += _backward(adapted, [samples[i] for i in plan.batch(step)], pad_id, device)
        _step(optimizer, [*A, *B], config)
        scheduler.step()
    delta = {name: L @ R for name, L, R in delta_factors(adapted)}
    adapted.unload()  # type: ignore[operator]
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(trainable[name])
    low, high = min(ranks.values()), max(ranks.values())
    sentence = f"change of a wide LoRA run: rank {low} to {high}, {steps} steps, {tokens} tokens"
    return WeightChange(_finite(delta, "the wide run", "lower optim.lr"), sentence, tokens)


def teacher(net: nn.Module, targets: Sequence[Target], name_or_path: str) -> WeightChange:
    """Teacher less base, for every target; an oracle, since the teacher has been trained already.

    Raises UsageError naming the first parameter whose name or shape is not the base's, before the teacher's weights are
    read, and where its folder does not hold all of them.
    """
    source = Pretrained(name_or_path=name_or_path, revision=None, quantization=None, attn_implementation=None)
    source.check()
    theirs = {name: tuple(parameter.shape) for name, parameter in source.skeleton().named_parameters()}
    ours = {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if ours.get(name) != theirs.get(name):
            raise UsageError(
                f"init.teacher={name_or_path} is no fine-tuned version of the base: {name} is "
                f"{theirs.get(name, 'absent')} there and {ours.get(name, 'absent')} here; every name and shape must "
                f"match."
            )
    modules = dict(net.named_modules())
    trained = dict(source.load(torch.float32, 0).named_modules())
    delta = {}
    for target in targets:
        weight = weight_of(modules[target.name])
        delta[target.name] = weight_of(trained[target.name]).detach().to(weight.device) - weight.detach().float()
    sentence = f"change of a teacher, {name_or_path}: an oracle, whose training is not counted"
    return WeightChange(_finite(delta, "the teacher", "use another teacher"), sentence, 0)


def _betas(config: RunConfig) -> tuple[float, float]:
    return config.optim.betas[0], config.optim.betas[1]


def _backward(net: Any, batch: Sequence[Sample], pad_id: int, device: torch.device) -> int:
    """Leave the gradient of the batch's mean loss in the parameters, summed over processes; returns its real tokens."""
    labels = sum(int((sample.labels[1:] != -100).sum()) for sample in batch)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    with LabelGate(base_of(net)) as gate:
        for i, part in enumerate(batches_of(batch, TOKENS_PER_BATCH)):
            if i % world() == rank():
                tensors = {key: value.to(device) for key, value in collate(part, pad_id).items()}
                (token_loss(net, gate, **tensors) / max(1, labels)).backward()  # type: ignore[no-untyped-call]
    for parameter in trained:
        all_reduce(parameter.grad)
    return sum(len(sample.input_ids) for sample in batch)


def _step(optimizer: torch.optim.Optimizer, parameters: list[Any], config: RunConfig) -> None:
    if config.optim.max_grad_norm > 0:
        torch.nn.utils.clip_grad_norm_(parameters, config.optim.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def _finite(delta: dict[str, Tensor], what: str, remedy: str) -> dict[str, Tensor]:
    for name, change in delta.items():
        if not bool(torch.isfinite(change).all()):
            raise UsageError(f"{what} left {name} with a change that is not finite; {remedy}.")
    return delta
