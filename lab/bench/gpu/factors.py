"""Filling of a 7B model's layers from their spectra: this lab's svd and pissa beside peft's."""

from collections.abc import Iterator
from typing import Any

from lab.bench.device import bench_device
from lab.bench.init import empty_cache, layer_rows
from lab.bench.init_cases import make_case

SHAPES = ((4096, 4096), (4096, 11008))
TINY_SHAPES = ((64, 64), (64, 96))
SCHEMES = ("svd", "pissa")


def rows(tiny: bool) -> Iterator[dict[str, Any]]:
    """The rows of the suite `init` for these layers, of a decaying spectrum; each measured once behind a small one."""
    device = bench_device()
    with empty_cache() as cache:
        for _ in layer_rows(make_case(TINY_SHAPES[0], "decaying").to(device), SCHEMES, 1, cache):
            pass  # the first call of a library is dearer than all others
        for shape in TINY_SHAPES if tiny else SHAPES:
            yield from layer_rows(make_case(shape, "decaying").to(device), SCHEMES, 1, cache)
