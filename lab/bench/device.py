"""Device of a bench: its name, seconds and memory as it counts them, and the products that it can do at best."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from lab.training.hardware import cpu_has_bf16, cpu_name

CEILING = {"cuda": (8192, 20), "cpu": (1024, 4)}  # side of the square matrices, and products in a row
PER_PARAMETER = {"lora": 4, "full": 6}  # FLOPs a token: forward and both gradients, of a frozen weight only the input's


def bench_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def name_of(device: torch.device) -> str:
    """The card's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


class Stopwatch:
    """Seconds of work on a device: between two events of its stream on a GPU, by a clock of the CPU elsewhere.

    A GPU is idle when the watch starts and has finished when it stops. `clock` is wall time unless told otherwise.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.clock = device, clock

    def start(self) -> None:
        """Begin, once what was asked of the device before is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self._events[0].record(torch.cuda.current_stream(self.device))
        else:
            self._began = self.clock()

    def stop(self) -> float:
        """Seconds since `start`, of all that was asked of the device in between."""
        if self.device.type == "cuda":
            self._events[1].record(torch.cuda.current_stream(self.device))
            torch.cuda.synchronize(self.device)
            return self._events[0].elapsed_time(self._events[1]) / 1e3
        return self.clock() - self._began


def seconds_of(device: torch.device, call: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of one call, the mean over `repeats` in a row, behind a call that is not timed."""
    call()
    watch = Stopwatch(device)
    watch.start()
    for _ in range(repeats):
        call()
    return watch.stop() / repeats


class PeakMemory:
    """Bytes at the height of what follows above those in use when it is made.

    By the allocator on a GPU; resident memory of the process on a CPU, and None where the system does not tell.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before: int | None = torch.cuda.memory_allocated(device)
        else:
            self.before = _reset_resident_peak()

    def bytes(self) -> int | None:
        """The peak so far."""
        if self.before is None:
            return None
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _status("VmHWM")
        return max(peak - self.before, 0)


def _reset_resident_peak() -> int | None:
    """Resident bytes now, the process's high-water mark set to them; None where there is no Linux to ask."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        return _status("VmRSS")
    except OSError:
        return None


def _status(key: str) -> int:
    line = next(
        line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith(key)
    )
    return int(line.split()[1]) * 1024


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32, which is faster there."""
    has = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bf16()
    return torch.bfloat16 if has else torch.float32


def product_flops(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """FLOP/s of a product of two square matrices, measured: what a step can reach at best here."""
    default, repeats = CEILING[device.type]
    side = side or default
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds_of(device, lambda: a @ b, repeats)


def multiplied(net: nn.Module) -> int:
    """Parameters that each token is multiplied with: of every linear layer, a tied head's with them; no lookup.

    Attention's own products are left out, which are few for texts shorter than a model is wide.
    """
    return sum(module.weight.numel() for module in net.modules() if isinstance(module, nn.Linear))


def utilisation(kind: str, parameters: int, tokens_per_second: float, ceiling: float) -> float:
    """MFU: the share of the measured product's FLOP/s that real tokens need; `kind` is lora or full."""
    return PER_PARAMETER[kind] * parameters * tokens_per_second / ceiling
