"""A step of NanoChat at depth 4 against seed 001's own arithmetic, interleaved.    python -m lab.bench pretrain"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from lab import config
from lab.adapter.build import trained_in_full
from lab.adapter.structured import Structured
from lab.bench import BenchRow
from lab.bench.device import PeakMemory, Stopwatch, fastest_dtype, multiplied, product_flops, utilisation
from lab.config import instantiate
from lab.model import Model
from lab.record import RunRecord
from lab.run.cost import LiveBytes
from lab.run.setup import resolve_hardware
from lab.training.module import CausalLM
from lab.training.muon import NEWTON_SCHULZ, STEPS
from lab.training.progress import console
from lab.training.run import Clock, Run

TOKENS = 512
WARM_UP = 2  # steps that are not timed
Step = Callable[[Tensor], float]
Look = Callable[[torch.optim.Optimizer], None]


def run(quick: bool) -> list[BenchRow]:
    """A row per contender: median seconds of a step, peak bytes its tensors take, and the loss after the last.

    All start from the same weights and see the same random words, one step each in turn; `speedup` is the seed's
    seconds over a contender's. Memory is that of what forward and backward pass make, gradients included: by the
    allocator on a GPU, else by the tensors alive. `mfu` is of a product measured on the device.
    """
    steps, words = (4, 8192) if quick else (9, 65536)
    settings = settings_of(words)
    hardware = resolve_hardware(settings)
    device = hardware.device
    nets = on_device(instantiate.make(settings.model), 3, device)
    contenders: dict[str, Step] = {
        "this lab": lab(nets[0], settings, hardware),
        "seed 001": seed(nets[1], torch.bfloat16),
        "seed 001, Newton-Schulz in float32": seed(nets[2], torch.float32),
    }
    watch = Stopwatch(device)
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    losses, peaks = {}, {}
    for step in range(WARM_UP + steps + 1):
        ids = torch.randint(words, (1, TOKENS), generator=generator).to(device)
        for name, take in contenders.items():
            if step == WARM_UP + steps:  # counted, and slower for it
                losses[name], peaks[name] = counted(take, ids)
                continue
            watch.start()
            take(ids)
            taken = watch.stop()
            if step >= WARM_UP:
                seconds[name].append(taken)
    ceiling = product_flops(device, fastest_dtype(device))
    parameters = multiplied(nets[0])
    common = {"device": hardware.device_name, "precision": hardware.precision, "threads": hardware.threads}
    common |= {"vocab_size": words, "tokens": TOKENS, "repeats": steps}
    common["ceiling_flops"] = ceiling
    reference = statistics.median(seconds["seed 001"])
    rows = [
        {
            "contender": name,
            "seconds": statistics.median(taken),
            "speedup": reference / statistics.median(taken),
            "peak_bytes": peaks[name],
            "mfu": utilisation("full", parameters, TOKENS / statistics.median(taken), ceiling),
            "loss": losses[name],
            **common,
        }
        for name, taken in seconds.items()
    ]
    console.print(table(rows))
    return rows


def settings_of(words: int) -> Any:
    """NanoChat at depth 4 with a vocabulary of that many words, trained in full by its own optimizer."""
    return config.compose(
        "model=nanochat_d4",
        f"model.vocab_size={words}",
        "method=full",
        "optim=nanochat",
        "schedule.max_steps=1000",
        "schedule.batch_size=1",
        "schedule.warmup_steps=0",
        "schedule.lr_scheduler=constant",
    )


def on_device(model: Model, count: int, device: torch.device) -> list[Any]:
    """As many equal models in float32, where they will be timed."""
    return [model.load(torch.float32, 0).to(device) for _ in range(count)]  # type: ignore[arg-type]


def counted(take: Step, ids: Tensor) -> tuple[float, int]:
    """A step's loss, and the bytes at its peak above what was there before."""
    if ids.is_cuda:
        peak = PeakMemory(ids.device)
        loss = take(ids)
        return loss, peak.bytes() or 0
    with LiveBytes() as live:
        loss = take(ids)
    return loss, live.peak


def nothing(optimizer: torch.optim.Optimizer) -> None:
    """Nobody looks."""


def lab(net: Any, settings: Any, hardware: Any, ready: Look = nothing, after: Look = nothing) -> Step:
    """This lab's training step, its trainer's bookkeeping left out.

    `ready` is called when the gradients are there, unclipped, and `after` when the optimizer has stepped.
    """
    model = Structured(net, trained_in_full(net), {})
    run = Run(settings, Path(), RunRecord(), model, settings.schedule.max_steps, Clock())
    module = CausalLM(run, hardware)
    optimizer = module.configure_optimizers()["optimizer"]
    net.train()

    def step(ids: Tensor) -> float:
        predicted = ids[:, 1:].numel()
        batch = {"step": 0, "slot": 0, "share": 1.0, "denominator": predicted, "examples": [0]}
        module.training_step({"input_ids": ids, "labels": ids, **batch}, 0).backward()  # type: ignore[no-untyped-call]
        ready(optimizer)
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        after(optimizer)
        optimizer.zero_grad()
        return module.step_nats / predicted

    return step


def seed(net: Any, newton_schulz: torch.dtype) -> Step:
    """Seed 001's step: float32, all logits through the softcap, fused AdamW and Muon matrix by matrix."""
    matrices = [p for name, p in net.named_parameters() if ".layers." in name]
    wider = (net.config.hidden_size / 768) ** -0.5
    groups = [
        {"params": [net.lm_head.weight], "lr": 0.004 * wider},
        {"params": [net.get_input_embeddings().weight], "lr": 0.2 * wider},
    ]
    adamw = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, fused=True)
    momenta = [torch.zeros_like(p) for p in matrices]
    net.train()
    taken = 0

    def step(ids: Tensor) -> float:
        nonlocal taken
        logits = net(input_ids=ids[:, :-1], use_cache=False).logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adamw.step()
        share = min(taken / 300, 1.0)
        for matrix, momentum in zip(matrices, momenta, strict=True):
            _muon(matrix, momentum, (1 - share) * 0.85 + share * 0.95, newton_schulz)
        taken += 1
        net.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


@torch.no_grad()
def _muon(matrix: nn.Parameter, momentum: Tensor, beta: float, dtype: torch.dtype) -> None:
    """Muon as its author published it: five steps of Newton and Schulz, in bfloat16 there (Jordan et al., 2024)."""
    gradient = matrix.grad
    assert gradient is not None
    momentum.lerp_(gradient, 1 - beta)
    X = gradient.lerp(momentum, beta).to(dtype)
    tall = X.shape[0] > X.shape[1]
    X = X.mT if tall else X
    X = X / (X.norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(STEPS):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
    matrix.add_((X.mT if tall else X).to(matrix.dtype), alpha=-0.02 * scale)


def table(rows: list[BenchRow]) -> Table:
    """The rows for a terminal."""
    first = rows[0]
    title = (
        f"A step of {first['tokens']} tokens at {first['vocab_size']:,} words: {first['device']}, "
        f"{first['precision']}, {first['threads']} threads, medians of {first['repeats']}"
    )
    shown = Table(title=title)
    for heading in ("contender", "ms per step", "faster than the seed by", "MFU", "peak MB", "loss"):
        shown.add_column(heading, justify="left" if heading == "contender" else "right")
    for row in rows:
        shown.add_row(
            row["contender"],
            f"{1e3 * row['seconds']:.0f}",
            f"{row['speedup']:.2f}x",
            f"{row['mfu']:.1%}",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['loss']:.4f}",
        )
    return shown
