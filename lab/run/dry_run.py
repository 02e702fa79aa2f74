"""Dry run: memory, FLOPs and time of a run, without a step of it."""

import time
from dataclasses import dataclass, replace

import psutil
import torch

from lab.config import RunConfig
from lab.data.corpus import Corpus, load_corpus
from lab.model.stored import weight_files
from lab.run import forecast
from lab.run.cost import Cost, device_speed, predict
from lab.run.parts import Parts
from lab.run.setup import policy_targets
from lab.training.answers import Answers
from lab.training.hardware import Resolved, resolve
from lab.training.loader import BatchPlan
from lab.training.optim import total_steps
from lab.training.positions import check_fits

ROOM = 0.8  # of the memory that is free: what a run may take to be tried


@dataclass(frozen=True)
class Planned:
    """A run as its config describes it: its parts, and what its steps take."""

    config: RunConfig
    hardware: Resolved
    parts: Parts
    corpus: Corpus
    answers: Answers
    cost: Cost  # of the longest micro-batch on one device
    flops: float  # of a mean optimizer step, on all devices, the optimizer's own not counted
    steps: int

    @property
    def is_here(self) -> bool:
        """True where this machine has the device and the weights, and room for them: then it can be tried."""
        if self.hardware.accelerator == "gpu":
            here = torch.cuda.device_count() >= self.hardware.devices
            room = torch.cuda.mem_get_info()[0] if here else 0
        else:
            room = psutil.virtual_memory().available
        model = self.parts.model
        drawn = model.name_or_path.startswith("scratch:")
        return self.cost.peak < ROOM * room and (drawn or bool(weight_files(model.name_or_path, model.revision)))


def plan(config: RunConfig) -> Planned:
    """What a run would be; reads its data and its model's config, and no weight."""
    wanted, trains_base = config.hardware, config.method == "full"
    if wanted.accelerator == "gpu" and torch.cuda.device_count() < wanted.devices:
        # A machine that is not here can still be planned for; what it has is what its hardware option says.
        hardware = replace(
            resolve(replace(wanted, accelerator="cpu"), config.schedule.batch_size, trains_base=trains_base),
            accelerator="gpu",
            precision="bf16-mixed" if wanted.precision == "auto" else wanted.precision,
        )
    else:
        hardware = resolve(wanted, config.schedule.batch_size, trains_base=trains_base)
    parts = Parts.of(config)
    tokenizer = parts.model.tokenizer()
    corpus = load_corpus(parts.data, tokenizer, config.evaluate.max_examples)
    answers = Answers(parts.data, corpus, tokenizer, config.evaluate, torch.device("cpu"))
    check_fits(parts.model.skeleton(), corpus, config.evaluate, judged=bool(answers.judged))
    samples = corpus.train.samples
    batches = BatchPlan([len(sample.input_ids) for sample in samples], config.schedule.batch_size, config.data_seed)
    steps = total_steps(config.schedule, batches.steps_per_epoch)
    policy_targets(parts, config, hardware, steps)  # which raises what the run would
    step, flops = predict(config, hardware, samples)
    return Planned(config, hardware, parts, corpus, answers, step, flops, steps)


def report(config: RunConfig) -> str:
    """The lines that dry_run=true prints."""
    began = time.perf_counter()
    planned = plan(config)
    hardware, one = planned.hardware, planned.cost
    rows = {
        "weights": one.weights,
        "gradients": one.gradients,
        "optimizer": one.optimizer,
        "activations": one.activations,
        "peak": one.peak,
    }
    name, speed, source = device_speed(hardware)
    lines = [
        f"dry run: {hardware.devices} x {name}, {hardware.precision}, micro-batch {hardware.micro} x "
        f"{hardware.accumulate} accumulated",
        *planned.corpus.losses(),
        *planned.corpus.repeats(),
        f"{one.trainable:,} of {one.parameters:,} parameters train",
        *(f"  {what:<12} {_size(size, hardware)}" for what, size in rows.items()),
    ]
    own = one.optimizer_flops
    counted = f"{planned.flops:.3g} FLOPs per step, {planned.steps:,} steps"
    counted += f", and {own:.3g} a step on each device for the optimizer" if own else ""
    if not planned.is_here:
        hours = planned.steps * (planned.flops / hardware.devices + own) / speed / 3600
        return "\n".join([*lines, f"{counted}: {hours:.2g} hours of training alone ({source})"])
    expected = forecast.of(planned, forecast.probe(planned))
    took = time.perf_counter() - began
    return "\n".join(
        [
            *lines,
            f"{counted}: {expected.total / 3600:.2g} hours in all, by a probe of this machine ({took:.0f} s)",
            *(f"  {what:<30} {each:>10,.1f} s" for what, each in expected.seconds.items() if each),
            f"{expected.exported / 1e6:,.1f} MB of disk, and {3 * expected.checkpoint / 1e6:,.1f} MB of checkpoints",
        ]
    )


def _size(bytes_held: int, hardware: Resolved) -> str:
    if hardware.accelerator == "gpu":
        return f"{bytes_held / 2**30:>10,.2f} GiB per GPU"
    return f"{bytes_held / 2**20:>10,.1f} MiB per device"
