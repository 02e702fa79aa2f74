"""Adapters of several jobs on one base, side by side in a step: a prototype, to see what packing would gain.

Each job has its own pair beside every layer and its own texts; the base is multiplied once for all of them.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.bench.device import PeakMemory, Stopwatch, bench_device, name_of
from lab.bench.gpu import drawn
from lab.bench.shapes import LLAMA_135M, TINY
from lab.layer import find_targets

RANK, SCALING, LR = 16, 2.0, 1e-4
TEXTS, LENGTH = 4, 256  # of each job
WARM_UP, STEPS = 3, 10


class Packed(nn.Module):
    """A frozen linear layer with a pair for each job: base(x) + s B_j A_j x.

    A: (jobs, rank, in), B: (jobs, out, rank), float32, multiplied in the dtype of what comes in: (examples, time, in),
    the examples being the jobs' in equal shares, in order.
    """

    def __init__(self, base: nn.Linear, jobs: int, rank: int) -> None:
        super().__init__()
        out, inner = base.weight.shape
        self.base, device = base, base.weight.device
        self.A = nn.Parameter(torch.randn(jobs, rank, inner, device=device) / inner**0.5)
        self.B = nn.Parameter(torch.zeros(jobs, out, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """As of the layer alone, (examples, time, out)."""
        base: Tensor = self.base(x)
        own = x.reshape(len(self.A), -1, x.shape[-1])
        u = torch.bmm(own, self.A.to(x.dtype).mT)
        B = (SCALING * self.B).to(x.dtype)
        return torch.baddbmm(base.reshape(len(B), -1, base.shape[-1]), u, B.mT).view_as(base)


def layers_of(net: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a pristine base that get pairs; freezes the base."""
    net.requires_grad_(False)
    return {target.name: net.get_submodule(target.name) for target in find_targets(net)}  # type: ignore[misc]


def pack(net: nn.Module, layers: Mapping[str, nn.Linear], jobs: int, rank: int = RANK) -> dict[str, Packed]:
    """Put pairs of as many jobs around these layers, in place of any that were there."""
    packed = {name: Packed(layer, jobs, rank) for name, layer in layers.items()}
    for name, module in packed.items():
        net.set_submodule(name, module)
    return packed


def losses(net: nn.Module, ids: Tensor, jobs: int) -> Tensor:
    """Each job's mean cross-entropy, (jobs,), on its share of the texts (examples, time)."""
    logits = net(input_ids=ids, use_cache=False).logits[:, :-1].float()
    each = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return each.view(jobs, -1).mean(1)


def step_of(net: nn.Module, packed: Mapping[str, Packed], ids: Tensor, jobs: int) -> Callable[[], float]:
    """A training step of all jobs at once: AdamW has no word between parameters, so each job's is as alone."""
    pairs = [p for layer in packed.values() for p in (layer.A, layer.B)]
    optimizer = torch.optim.AdamW(pairs, lr=LR, weight_decay=0.0, fused=True)

    def step() -> float:
        torch.compiler.cudagraph_mark_step_begin()
        loss = losses(net, ids, jobs).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach()) / jobs

    return step


def base_and_ids(tiny: bool, jobs: int, device: torch.device) -> tuple[Any, Tensor]:
    """The base in bfloat16, and the texts of all jobs together."""
    shape = LLAMA_135M | (TINY if tiny else {})
    count, length = (2, 16) if tiny else (TEXTS, LENGTH)
    samples = drawn.texts(count * jobs, length, shape["vocab_size"])
    return drawn.model(shape, device, torch.bfloat16), torch.stack([s.input_ids for s in samples]).to(device)


def rows(tiny: bool) -> Iterator[dict[str, Any]]:
    """A row per number of jobs: seconds a step, adapter-steps a second, and how many times one job's that is.

    Then the same by CUDA graphs, each block compiled with mode=reduce-overhead.
    """
    device = bench_device()
    net, ids = base_and_ids(tiny, 16, device)
    layers = layers_of(net)
    alone = 0.0
    for graphs, counts in ((False, (1, 8, 16)), (True, (1, 8))):
        for jobs in counts:
            row: dict[str, Any] = {"jobs": jobs, "cuda_graphs": graphs, "device": name_of(device)}
            if graphs and device.type == "cpu":
                yield row | {"skipped": "no CUDA"}
                continue
            own = ids[: len(ids) // 16 * jobs]
            step = step_of(net, pack(net, layers, jobs), own, jobs)
            if graphs:
                torch._dynamo.reset()
                for block in net.model.layers:
                    block.compile(mode="reduce-overhead")
            row |= _timed(step, device)
            speed = jobs / row["seconds"]
            alone = alone or speed
            row |= {"adapter_steps_per_second": speed, "times_one_job": speed / alone}
            yield row | {"tokens_per_second": own.numel() / row["seconds"]}


def _timed(step: Callable[[], float], device: torch.device) -> dict[str, Any]:
    """Median seconds of a step, the loss of the last, and the bytes at the peak above those before."""
    peak, watch, taken, loss = PeakMemory(device), Stopwatch(device), [], 0.0
    for _ in range(WARM_UP):
        step()
    for _ in range(STEPS):
        watch.start()
        loss = step()
        taken.append(watch.stop())
    return {"seconds": statistics.median(taken), "loss": loss, "peak_bytes": peak.bytes()}
