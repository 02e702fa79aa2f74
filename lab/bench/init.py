"""Time, peak memory and captured energy of each init scheme against peft's own.    python -m lab.bench init"""

import copy
import ctypes
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lab.adapter.build import build, planned
from lab.adapter.initialise import initialise
from lab.bench import SPECTRA, BenchRow
from lab.bench.device import PeakMemory, Stopwatch, bench_device, name_of
from lab.bench.init_cases import (
    ALPHA,
    COUNTERPARTS,
    RANK,
    Case,
    captured_energy,
    make_case,
    our_fill,
    our_schemes,
    peft_fill,
)
from lab.layer import find_targets, weight_of

Fill = Callable[[], tuple[Tensor, Tensor]]

QUICK_SHAPES = ((1024, 1024),)
FULL_SHAPES = ((1024, 1024), (2048, 2048), (4096, 4096), (4096, 11008))
M_MMAP_THRESHOLD, LARGE_BLOCK = -3, 1 << 22  # glibc returns these at once; left alone it learns to keep up to 32 MB
REPEATS_UP_TO = 2048  # layers this wide are measured three times (once if quick), the median taken; wider ones once


def run(
    quick: bool,
    shapes: Sequence[tuple[int, int]] = (),
    spectra: Sequence[str] = SPECTRA,
    schemes: Sequence[str] = (),
    lines: Path | None = None,
) -> list[BenchRow]:
    """A row per whole model, then per layer, spectrum and scheme; printed as a table and returned for JSON.

    seconds: of the GPU where there is one, else CPU time of one thread, with an empty SVD cache; cached_seconds: once
    more with a full one; peak_bytes: allocated on the GPU, else resident memory, at the height of the call above what
    was there before (None where the system does not tell).
    `peft_…` are of its own counterpart, None where it has none. `speedup` is peft_seconds / seconds.
    `shapes` (out, in) and `schemes` narrow it to these and leave the model out; `lines` is a file that takes each row
    as it is finished.
    """
    rows = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if lines is not None:
        lines.write_text("", encoding="utf-8")
    try:
        for row in _rows(quick, shapes, spectra, schemes):
            rows.append(row)
            if lines is not None:
                with open(lines, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    finally:
        torch.set_num_threads(threads)
    Console().print(table(rows, name_of(bench_device())))
    return rows


def _rows(
    quick: bool, shapes: Sequence[tuple[int, int]], spectra: Sequence[str], schemes: Sequence[str]
) -> Iterator[BenchRow]:
    device = bench_device()
    with empty_cache() as cache:
        if not (shapes or schemes):
            yield from _model_rows(num_layers=2 if quick else 8, cache=cache, device=device)
        cases = [(shape, name) for shape in shapes or (QUICK_SHAPES if quick else FULL_SHAPES) for name in spectra]
        for shape, spectrum in track(cases, "layers", console=Console(stderr=True), transient=True):
            repeats = 1 if quick or max(shape) > REPEATS_UP_TO else 3
            yield from layer_rows(make_case(shape, spectrum).to(device), schemes, repeats, cache)


def layer_rows(case: Case, schemes: Sequence[str], repeats: int, cache: Path) -> Iterator[BenchRow]:
    """A row per scheme, all unless some are named, where the case's tensors are."""
    for name, scheme in our_schemes().items():
        if schemes and name not in schemes:
            continue
        ours = our_fill(scheme, case)
        theirs = partial(peft_fill, name, COUNTERPARTS[name], case) if name in COUNTERPARTS else None
        yield _row(case, name, ours, theirs, repeats, cache)
        if name == "pissa":  # once more against peft's own randomised variant
            sketched = _row(case, name, ours, partial(peft_fill, name, "pissa_niter_4", case), repeats, cache)
            yield sketched | {"scheme": "pissa / niter_4"}


def _row(case: Case, name: str, ours: Fill, theirs: Callable[[], Fill] | None, repeats: int, cache: Path) -> BenchRow:
    device = case.weight.device
    measured: dict[str, list[tuple[float, int | None, Any]]] = {"ours": [], "cached": [], "theirs": []}
    for _ in range(repeats):  # interleaved, so that a busy moment hits both
        _clear(cache)
        measured["ours"].append(_measure(ours, device))
        measured["cached"].append(_measure(ours, device))
        if theirs is not None:
            measured["theirs"].append(_measure(theirs(), device))
    row: BenchRow = {"layer": case.layer, "spectrum": case.spectrum, "scheme": name, "device": name_of(device)}
    row["seconds"], row["peak_bytes"] = _middle(measured["ours"])
    row["cached_seconds"], _ = _middle(measured["cached"])
    row["captured_energy"] = captured_energy(name, measured["ours"][0][2], case)
    row["peft_seconds"], row["peft_peak_bytes"] = _middle(measured["theirs"])
    row["peft_captured_energy"] = captured_energy(name, measured["theirs"][0][2], case) if theirs else None
    row["speedup"] = row["peft_seconds"] / row["seconds"] if theirs else None  # filling itself, cache empty
    return row


def _model_rows(num_layers: int, cache: Path, device: torch.device) -> Iterator[BenchRow]:
    """A Llama of `num_layers` blocks, 512 wide, every linear layer of decaying spectrum: adapters made and filled."""
    config = LlamaConfig(
        hidden_size=512, intermediate_size=1376, num_hidden_layers=num_layers, num_attention_heads=8, vocab_size=512
    )
    base = LlamaForCausalLM(config)
    for seed, target in enumerate(find_targets(base)):
        module = base.get_submodule(target.name)
        weight_of(module).data.copy_(make_case(target.shape, "decaying", seed).weight)
    base.to(device)  # type: ignore[arg-type]
    _pefts_whole(base, "random")()  # the first call of all pays for imports
    _ours_whole(base, "random")()
    for name in ("random", "orthogonal", "pissa", "olora"):
        _clear(cache)
        seconds, peak, _ = _measure(_ours_whole(base, name), device)
        cached, _, _ = _measure(_ours_whole(base, name), device)
        peft_seconds, peft_peak, _ = _measure(_pefts_whole(base, name), device)
        row: BenchRow = {"layer": f"model, {num_layers * 7} layers", "spectrum": "decaying", "scheme": name}
        row["device"] = name_of(device)
        row |= {"seconds": seconds, "peak_bytes": peak, "cached_seconds": cached, "captured_energy": None}
        row |= {"peft_seconds": peft_seconds, "peft_peak_bytes": peft_peak, "peft_captured_energy": None}
        yield row | {"speedup": peft_seconds / seconds}


def _ours_whole(base: nn.Module, name: str) -> Callable[[], Any]:
    net, scheme = copy.deepcopy(base), our_schemes()[name]

    def fill() -> Any:
        targets = find_targets(net)
        plan = {target.name: RANK for target in targets}
        model = build(net, planned(targets, plan, scaling=ALPHA / RANK))
        return initialise(model, scheme, targets, {}, seed=0)

    return fill


def _pefts_whole(base: nn.Module, name: str) -> Callable[[], Any]:
    net = copy.deepcopy(base)
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", init_lora_weights=COUNTERPARTS[name],
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return lambda: peft.get_peft_model(net, config)


@contextmanager
def empty_cache() -> Iterator[Path]:
    """A cache folder of the bench's own: the user's would hold nothing of these weights, and is left alone."""
    before = os.environ.get("LAB_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LAB_CACHE"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("LAB_CACHE")
            if before is not None:
                os.environ["LAB_CACHE"] = before


def _clear(cache: Path) -> None:
    for file in cache.rglob("*.safetensors"):
        file.unlink()


def _measure(call: Callable[[], Any], device: torch.device) -> tuple[float, int | None, Any]:
    """Seconds, of a CPU those that leave out work beside it; peak bytes above those before; what the call returned."""
    gc.collect()
    if device.type == "cpu":
        _give_back()
    peak, watch = PeakMemory(device), Stopwatch(device, time.process_time)
    watch.start()
    result = call()
    seconds = watch.stop()
    return seconds, peak.bytes(), result


def _give_back() -> None:
    """Let glibc return freed memory to the system, where it is the C library: it would still count as resident."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
        libc.malloc_trim(0)
    except (OSError, AttributeError):
        return


def _middle(measured: list[tuple[float, int | None, Any]]) -> tuple[float | None, int | None]:
    if not measured:
        return None, None
    peaks = [peak for _, peak, _ in measured if peak is not None]
    return statistics.median(item[0] for item in measured), max(peaks) if peaks else None


def table(rows: list[BenchRow], device: str) -> Table:
    """The rows for a terminal."""
    shown = Table(title=f"init at rank {RANK}, {device}; energy: share of what the scheme is after")
    for heading in ("layer", "spectrum", "scheme"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("seconds", "cached", "peft s", "speed-up", "peak MB", "peft MB", "energy", "peft energy"):
        shown.add_column(heading, justify="right")
    for row in rows:
        shown.add_row(
            row["layer"],
            row["spectrum"],
            row["scheme"],
            *(_shown(row[key], "{:.4f}") for key in ("seconds", "cached_seconds", "peft_seconds")),
            _shown(row["speedup"], "{:.1f}×"),
            *(_shown(row[key] and row[key] / 1e6, "{:.0f}") for key in ("peak_bytes", "peft_peak_bytes")),
            *(_shown(row[key], "{:.5f}") for key in ("captured_energy", "peft_captured_energy")),
        )
    return shown


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
