"""Dry run: memory, FLOPs and time of a run, said before it is run."""

import time

from lab.config import RunConfig
from lab.run import forecast
from lab.run.cost import device_speed
from lab.run.plan import plan
from lab.training.hardware import Resolved


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
