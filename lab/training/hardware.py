"""Hardware of a job, resolved from the config: devices, precision, and how a batch is split."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment

from lab import __version__
from lab.config import Hardware
from lab.errors import UsageError
from lab.process.process_group import LONGEST_WAIT, RENDEZVOUS

MICRO_BATCH = {"gpu": 16, "cpu": 8}  # examples, where the config leaves it open; a CPU gains nothing from more


@dataclass(frozen=True)
class Resolved:
    """Hardware as it really is."""

    accelerator: str  # cpu | gpu
    devices: int
    precision: str  # 32-true | bf16-mixed | bf16-true
    micro: int
    accumulate: int
    threads: int
    trains_base: bool = False  # every weight trains, and not adapters on a frozen base

    @property
    def autocast(self) -> bool:
        """True where weights are kept in float32 and cast for each product; a frozen base is kept in bf16 itself."""
        return self.trains_base and self.precision == "bf16-mixed"

    @property
    def weight_dtype(self) -> torch.dtype:
        """The dtype in which the base's weights are held."""
        return torch.float32 if self.autocast else self.compute_dtype

    @property
    def device(self) -> torch.device:
        """This process's device."""
        return (
            torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            if self.accelerator == "gpu"
            else torch.device("cpu")
        )

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of matrix products."""
        return torch.float32 if self.precision == "32-true" else torch.bfloat16

    @property
    def device_name(self) -> str:
        """What a table of measurements should call it."""
        return torch.cuda.get_device_name(self.device) if self.accelerator == "gpu" else cpu_name()

    def describe(self) -> str:
        """The first line of a run."""
        count = f"{self.devices} x " if self.devices > 1 else ""
        slow = self.accelerator == "cpu" and self.compute_dtype == torch.bfloat16 and not cpu_has_bf16()
        precision = f"{self.precision} (slow: this processor has no bf16 instructions)" if slow else self.precision
        return (
            f"torch {torch.__version__} · {count}{self.device_name} · {precision} · {self.threads} threads · "
            f"micro-batch {self.micro} x {self.accumulate} accumulated x {self.devices} devices"
        )


def cpu_name() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cpu_has_bf16() -> bool:
    """True where the processor multiplies bfloat16 in hardware (AVX512-BF16 or AMX); elsewhere bf16 is slower."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text(encoding="utf-8") if info.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def resolve(hardware: Hardware, batch_size: int, precision: str | None = None, trains_base: bool = False) -> Resolved:
    """Devices, precision and accumulation for a global batch; raises UsageError for what this machine lacks.

    `trains_base`: every weight of the model trains. `precision` is what `auto` came to before, in a run that goes on or
    is exported, perhaps on another machine.
    """
    gpus = torch.cuda.device_count()
    accelerator = hardware.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if gpus else "cpu"
    if accelerator == "gpu" and gpus < hardware.devices:
        raise UsageError(
            f"hardware asks for {hardware.devices} CUDA device(s) and torch {torch.__version__} sees {gpus}; "
            f"use hardware=cpu, or install a CUDA build of torch."
        )
    if hardware.precision != "auto" or precision is None:
        precision = hardware.precision
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if accelerator == "gpu" else cpu_has_bf16()
        precision = "bf16-mixed" if fast else "32-true"
    per_device = batch_size // hardware.devices
    micro = hardware.micro_batch_size
    if micro is None:
        micro = next(size for size in range(min(MICRO_BATCH[accelerator], per_device), 0, -1) if per_device % size == 0)
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    return Resolved(
        accelerator=accelerator,
        devices=hardware.devices,
        precision=precision,
        micro=micro,
        accumulate=per_device // micro,
        threads=torch.get_num_threads(),
        trains_base=trains_base,
    )


def join_group(resolved: Resolved) -> None:
    """Join the process group early: the base is evaluated, and evidence gathered, before Lightning would.

    Raises UsageError on every rank where the ranks run different versions of what decides a result.
    """
    if resolved.devices == 1:
        return
    if not dist.is_initialized():
        if resolved.accelerator == "gpu":
            torch.cuda.set_device(resolved.device)
        backend = "nccl" if resolved.accelerator == "gpu" else "gloo"
        meet = f"file://{os.environ[RENDEZVOUS]}"
        own, world = int(os.environ["RANK"]), resolved.devices
        dist.init_process_group(backend, init_method=meet, timeout=LONGEST_WAIT, rank=own, world_size=world)
    everywhere: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everywhere, versions())
    for name, mine in everywhere[0].items():
        differing = sorted(
            {f"{theirs[name]} (rank {rank})" for rank, theirs in enumerate(everywhere) if theirs[name] != mine}
        )
        if differing:
            raise UsageError(
                f"the ranks run different versions of {name}: {mine} (rank 0), {', '.join(differing)}; install the "
                f"same environment on every node."
            )


def versions() -> dict[str, str]:
    """The versions that must agree over the ranks of a job."""
    names = ("torch", "lightning", "transformers", "peft", "numpy")
    return {"python": platform.python_version(), "lab": __version__, **{name: version(name) for name in names}}


def cluster_of(resolved: Resolved) -> ClusterEnvironment:
    """How Lightning finds a process's rank: from the environment of its group, never by starting processes itself.

    Given explicitly, since Lightning would otherwise take an sbatch job's variables for those of our processes.
    """
    return TorchElasticEnvironment() if resolved.devices > 1 else LightningEnvironment()
