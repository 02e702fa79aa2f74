"""The largest micro-batch that fits a device, found by trying its longest examples before anything is wrapped."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn

from lab.data.encode import Sample
from lab.errors import UsageError
from lab.training.distributed import all_reduce
from lab.training.hardware import Resolved
from lab.training.loader import collate
from lab.training.loss import Scorer

ADAM_MOMENTS = 2  # tensors of a parameter's size that the optimizer will add, held free during the probe
BUCKETS = 1  # copies of the gradients in DDP's buckets


def fit(net: nn.Module, hardware: Resolved, samples: Sequence[Sample], pad_id: int, besides: int) -> Resolved:
    """The hardware with a micro-batch whose longest examples fit in memory on every rank.

    Tries forward and backward on the longest examples of the training side, halving towards the next divisor of a
    rank's share of the batch; all ranks take the smallest that any found. `besides` are bytes that training will hold
    besides its own state. Gradients, modes and random state are as before. Only GPUs are probed: on a CPU nothing
    refuses memory, the system ends the process.

    Raises UsageError where not even one example fits.
    """
    if hardware.accelerator != "gpu":
        return hardware
    trainable = sum(p.numel() * p.element_size() for p in net.parameters() if p.requires_grad)
    reserve = trainable * (ADAM_MOMENTS + (BUCKETS if hardware.devices > 1 else 0)) + besides

    def attempt(micro: int) -> None:
        held = torch.empty(reserve, dtype=torch.uint8, device=hardware.device)
        try:
            probe(net, longest(samples, micro), pad_id, hardware.device, hardware.autocast)
        finally:
            del held

    own = largest_that_fits(hardware.micro, hardware.micro * hardware.accumulate, attempt)
    agreed = agree(own, hardware.device)
    if agreed == 0:
        raise UsageError(
            f"not even one example of {len(longest(samples, 1)[0].input_ids)} tokens fits in the memory of "
            f"{hardware.device_name}; lower data.max_length, set hardware.gradient_checkpointing=true, or take a "
            f"smaller model."
        )
    return replace(hardware, micro=agreed, accumulate=hardware.micro * hardware.accumulate // agreed)


def largest_that_fits(wanted: int, share: int, attempt: Callable[[int], None]) -> int:
    """The largest divisor of `share`, at most `wanted`, that `attempt` does not run out of memory on; 0 if none."""
    sizes = [size for size in range(wanted, 0, -1) if share % size == 0]
    for size in sizes:
        try:
            attempt(size)
        except torch.OutOfMemoryError:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        return size
    return 0


def agree(own: int, device: torch.device) -> int:
    """The smallest of all ranks' micro-batches, made a divisor of each: they all divide the same share."""
    least = torch.tensor([own], device=device)
    all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def longest(samples: Sequence[Sample], count: int) -> list[Sample]:
    """The examples with the most tokens: no micro-batch of the run holds more."""
    return sorted(samples, key=lambda sample: -len(sample.input_ids))[:count]


def probe(net: nn.Module, samples: Sequence[Sample], pad_id: int, device: torch.device, autocast: bool) -> None:
    """One forward and backward pass of a micro-batch; the net and the random state are as before."""
    mode = net.training
    gradients = {p: p.grad for p in net.parameters()}
    try:
        generators = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        with Scorer(net, device, autocast) as scorer, generators:
            net.train()
            nats = scorer.nats(**{key: value.to(device) for key, value in collate(samples, pad_id).items()})
            nats.backward()
    finally:
        net.train(mode)
        for p, gradient in gradients.items():
            p.grad = gradient
