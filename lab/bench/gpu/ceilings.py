"""What this machine is, and the most that its device does: products and copies, timed."""

import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from lab.bench.device import bench_device, name_of, product_flops, seconds_of

PACKAGES = ("torch", "triton", "transformers", "peft", "lightning", "accelerate", "hydra-core", "numpy", "bitsandbytes")
SIDE, BYTES = 8192, 1 << 30
TINY_SIDE, TINY_BYTES = 256, 1 << 22


def rows(tiny: bool) -> Iterator[dict[str, Any]]:
    """Versions; FLOP/s of square products in three arithmetics; bytes a second of copies, read and written counted."""
    device = bench_device()
    yield {"what": "versions", "device": name_of(device), **_versions(), "nvidia_smi": _nvidia_smi()}
    side = TINY_SIDE if tiny else SIDE
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        yield {"what": f"product, {str(dtype)[6:]}", "side": side, "flops": product_flops(device, dtype, side)}
    yield from _copies(device, TINY_BYTES if tiny else BYTES)


def _copies(device: torch.device, count: int) -> Iterator[dict[str, Any]]:
    here = torch.zeros(count, dtype=torch.uint8, device=device)
    there = torch.empty_like(here)
    rate = 2 * count / seconds_of(device, lambda: there.copy_(here), 10)
    yield {"what": "copy on the device", "bytes": count, "bytes_per_second": rate}
    if device.type == "cpu":
        yield {"what": "copy to the device", "skipped": "no CUDA"}
        return
    pinned = torch.zeros(count, dtype=torch.uint8, pin_memory=True)
    rate = count / seconds_of(device, lambda: here.copy_(pinned, non_blocking=True), 5)
    yield {"what": "copy to the device", "bytes": count, "bytes_per_second": rate}


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version(), "torch_build": torch.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return {**found, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def _nvidia_smi() -> str | None:
    try:
        return subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False, timeout=20).stdout
    except FileNotFoundError:
        return None
