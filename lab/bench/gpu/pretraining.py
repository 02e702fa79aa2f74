"""Pre-training of NanoChat at depth 20: the lab's step plain, observed and compiled, the seed's, and ticks alone."""

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lab import config
from lab.bench import pretrain
from lab.bench.device import (
    PeakMemory,
    Stopwatch,
    bench_device,
    fastest_dtype,
    multiplied,
    name_of,
    product_flops,
    utilisation,
)
from lab.config import instantiate
from lab.instruments.layer_view import LayerViews
from lab.layer import find_targets
from lab.run.setup import resolve_hardware
from lab.spectral.tracker import Tracker
from lab.training.compile import compile_blocks

FULL = ("model=nanochat_d20", "schedule.batch_size=8", "hardware.micro_batch_size=8")
TINY = ("model=nanochat_d4", "model.depth=1", "model.vocab_size=4096", "schedule.batch_size=2")
WARM_UP = 2  # steps that are not timed


def rows(tiny: bool) -> Iterator[dict[str, Any]]:
    """A row per contender, of seconds a step, tokens a second, MFU (6 · parameters) and bytes at the peak.

    `a tick` and `an exact tick` are what one adds to its step: measuring, with all that is read for it, but neither
    ledger nor figures. All train the same weights one after another; the loss is of the last step.
    """
    batch, length, steps = (2, 64, 3) if tiny else (8, 2048, 8)
    overrides = ("method=full", "optim=nanochat", "schedule.max_steps=1000", "schedule.warmup_steps=0")
    settings = config.compose(*(TINY if tiny else FULL), *overrides, "svd_policy=observe")
    hardware, device = resolve_hardware(settings), bench_device()
    net = pretrain.on_device(instantiate.make(settings.model), 1, device)[0]
    ids = torch.randint(net.config.vocab_size, (batch, length), device=device)
    parameters = multiplied(net)
    ceiling = product_flops(device, fastest_dtype(device), 256 if tiny else None)
    common = {"device": name_of(device), "precision": hardware.precision, "batch": batch, "length": length}
    common |= {"parameters": parameters, "ceiling_flops": ceiling}

    def row(name: str, seconds: float, peak: int | None, loss: float) -> dict[str, Any]:
        speed = ids.numel() / seconds
        mfu = utilisation("full", parameters, speed, ceiling)
        return {"contender": name, "seconds": seconds, "tokens_per_second": speed, "mfu": mfu, "peak_bytes": peak} | {
            "loss": loss,
            **common,
        }

    step = pretrain.lab(net, settings, hardware)
    yield row("lab", *_timed(step, ids, device, steps))
    with tempfile.TemporaryDirectory() as folder:
        yield from _observed(net, settings, hardware, ids, Path(folder), steps)
    yield row("seed 001", *_timed(pretrain.seed(net, torch.bfloat16), ids, device, 3))
    if device.type == "cpu":
        yield {"contender": "lab, compiled", "skipped": "no CUDA"}
        return
    compile_blocks(net, hardware.accelerator)
    yield row("lab, compiled", *_timed(step, ids, device, steps))


def _timed(step: pretrain.Step, ids: Tensor, device: torch.device, steps: int) -> tuple[float, int | None, float]:
    """The median seconds of a step, the peak above what was there before, and the last loss."""
    peak, watch, taken, loss = PeakMemory(device), Stopwatch(device), [], 0.0
    for _ in range(WARM_UP):
        step(ids)
    for _ in range(steps):
        watch.start()
        loss = step(ids)
        taken.append(watch.stop())
    return statistics.median(taken), peak.bytes(), loss


def _observed(
    net: Any, settings: Any, hardware: Any, ids: Tensor, folder: Path, steps: int
) -> Iterator[dict[str, Any]]:
    """Ticks as the run takes them: the first, whose W₀ is decomposed too, one, and an exact one; each with its step."""
    policy = instantiate.make(settings.svd_policy)
    targets = [target for target in find_targets(net) if target.max_rank > policy.k]
    names, owner = [target.name for target in targets], {target.name: 0 for target in targets}
    how = {"k": policy.k, "oversample": policy.oversample, "engine": policy.engine}
    tracker = Tracker(**how, exact_every_n_ticks=policy.exact_every_n_ticks, seed=0)
    layers = LayerViews(net, targets, folder, compiled=False)
    layers.save_initial()
    device = hardware.device
    watch, spent, now = Stopwatch(device), 0.0, 0

    def ready(optimizer: torch.optim.Optimizer) -> None:
        nonlocal spent
        watch.start()
        gradients = layers.gradients(names, owner)
        tracker.begin(now, layers.weights(names), gradients, layers.initial, layers.directions)
        layers.keep(names)
        spent = watch.stop()

    def after(optimizer: torch.optim.Optimizer) -> None:
        nonlocal spent
        watch.start()
        tracker.finish(layers.updates(), layers.momenta(names, optimizer))
        spent += watch.stop()

    step = pretrain.lab(net, settings, hardware, ready, after)
    plain = pretrain.lab(net, settings, hardware)
    for _ in range(WARM_UP):
        plain(ids)
    whole = Stopwatch(device)
    ticks = (("the first tick, exact", 0), ("a tick", 1), ("an exact tick", policy.exact_every_n_ticks))
    for name, now in ticks:  # noqa: B007  # read by `ready`
        peak = PeakMemory(device)
        whole.start()
        step(ids)
        seconds = whole.stop()
        row = {"contender": name, "seconds": spent, "with_its_step": seconds, "layers": len(names)}
        yield row | {"peak_bytes": peak.bytes(), "device": name_of(device)}
    whole.start()
    now += 1
    step(ids)
    for _ in range(policy.every_n_steps - 1):
        plain(ids)
    seconds = whole.stop() / policy.every_n_steps
    yield {"contender": "lab, observed", "seconds": seconds, "every_n_steps": policy.every_n_steps} | {
        "tokens_per_second": ids.numel() / seconds,
        "device": name_of(device),
    }
