"""LoRA on a model of 7 billion parameters: this lab's arithmetics, compiled, the Trainer with peft, and a bare loop."""

import gc
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
import transformers.trainer  # noqa: F401

from lab import config
from lab.adapter.build import build, planned
from lab.adapter.layer import adapted_layers
from lab.adapter.structured import Structured
from lab.bench.device import PeakMemory, bench_device, multiplied, name_of, product_flops, utilisation
from lab.bench.gpu import drawn
from lab.bench.loops import Timing, Work, bare_loop, lab_loop, trainer_loop
from lab.bench.shapes import QWEN2_7B, TINY
from lab.config import RunConfig, instantiate
from lab.layer import find_targets
from lab.training.compile import compile_blocks
from lab.training.hardware import Resolved

RANK, ALPHA, LR = 16, 32, 1e-4


def rows(tiny: bool) -> Iterator[dict[str, Any]]:
    """A row per contender: real tokens a second, MFU, bytes at the peak with the weights, the last loss.

    The weights are drawn once, in bfloat16, and every contender takes its adapters off again. MFU is 4 · parameters ·
    tokens a second over a bfloat16 product measured here.
    """
    device = bench_device()
    shape = QWEN2_7B | (TINY if tiny else {})
    batch, length, steps, warm_up = (2, 32, 3, 1) if tiny else (8, 512, 6, 2)
    ceiling = product_flops(device, torch.bfloat16, 256 if tiny else None)
    net = drawn.model(shape, device, torch.bfloat16)
    parameters = multiplied(net)
    work = Work(drawn.texts(batch * steps, length, shape["vocab_size"]), 0, batch, steps, warm_up)
    settings = config.compose(
        f"rank={RANK}",
        f"schedule.batch_size={batch}",
        f"optim.lr={LR}",
        "schedule.lr_scheduler=constant",
        "schedule.warmup_steps=0",
    )
    hardware = Resolved("gpu" if device.type == "cuda" else "cpu", 1, "bf16-mixed", batch, 1, torch.get_num_threads())
    ours = partial(_lab, net, work, settings, hardware)
    contenders: dict[str, Callable[[], Timing]] = {  # the compiled last: blocks stay compiled
        "lab, pairs in bf16": ours,
        "Trainer + peft bf16": partial(_trainer, net, work, settings, device),
        "lab, a separate offset": partial(ours, separate=True),
        "bare loop": partial(ours, bare=True),
        "lab, pairs in bf16, compiled": partial(ours, compiled=True),
    }
    common = {"device": name_of(device), "parameters": parameters, "ceiling_flops": ceiling}
    common |= {"batch": batch, "length": length, "rank": RANK, "timed_steps": steps - warm_up}
    for name, train in contenders.items():
        if name.endswith("compiled") and device.type == "cpu":
            yield {"contender": name, "skipped": "no CUDA"}
            continue
        peak = PeakMemory(device)
        done = train()
        speed, above = done.tokens / done.seconds, peak.bytes()
        yield {
            "contender": name,
            "tokens_per_second": speed,
            "mfu": utilisation("lora", parameters, speed, ceiling),
            "peak_bytes": None if above is None or peak.before is None else peak.before + above,
            "loss": done.loss,
            **common,
        }
        _forget(device)


def _lab(
    net: Any,
    work: Work,
    settings: RunConfig,
    hardware: Resolved,
    separate: bool = False,
    bare: bool = False,
    compiled: bool = False,
) -> Timing:
    targets = find_targets(net)
    structure = planned(targets, {target.name: RANK for target in targets}, scaling=ALPHA / RANK)
    model = build(net, structure)
    if separate:  # as init=svd and most others do: a pair of twice the rank
        for layer in adapted_layers(model).values():
            layer.set_offset("separate", layer.A, layer.B)
    if compiled:
        compile_blocks(model, hardware.accelerator)
    try:
        if bare:
            return bare_loop(model, work, settings, hardware)
        with tempfile.TemporaryDirectory() as folder:
            return lab_loop(Structured(model, structure, {}), work, settings, hardware, Path(folder))
    finally:
        model.unload()


def _trainer(net: Any, work: Work, settings: RunConfig, device: torch.device) -> Timing:
    lora = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = peft.get_peft_model(net, lora)
    tokenizer = instantiate.make(settings.model).tokenizer()  # it pads, and reads no text
    try:
        with tempfile.TemporaryDirectory() as folder:
            return trainer_loop(model, work, tokenizer, LR, device, Path(folder), bf16=True, same_batches=True)
    finally:
        model.unload()


def _forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
