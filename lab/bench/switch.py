"""A layer that went low-rank against the full one and seed 001's own: time and memory beside the formulas.

`python -m lab.bench switch`. Shapes of NanoChat at depth 20, ranks as shares of break-even m·n/(m + n), 512 tokens.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from lab.adapter.switched import SwitchedLinear
from lab.bench import BenchRow
from lab.bench.device import Stopwatch, bench_device, name_of
from lab.structure import LayerForm
from lab.svd_policy.switching import break_even
from lab.training.muon import MuonAdamW
from lab.training.progress import console

TOKENS = 512
SHAPES = {"1280x1280": (1280, 1280), "5120x1280": (5120, 1280)}
SHARES = (0.25, 0.5, 0.75, 1.0)
BYTES = {"adamw": 16, "muon": 12}  # a trained entry's weight, gradient and moments, float32


class SeedLowRank(nn.Module):
    """Seed 001's layer after its switch: W_p + B A formed at every call, W and its decomposition kept."""

    def __init__(self, shape: tuple[int, int], rank: int) -> None:
        super().__init__()
        out, inner = shape
        self.W = nn.Parameter(torch.randn(out, inner) / inner**0.5, requires_grad=False)
        self.A, self.B = nn.Parameter(torch.randn(rank, inner)), nn.Parameter(torch.randn(out, rank) / inner)
        for name, size in (("W_principal", shape), ("U", (out, min(shape))), ("V", (min(shape), inner))):
            self.register_buffer(name, torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        """x (W_p + B A)ᵀ."""
        return F.linear(x, self.W_principal + self.B @ self.A)  # type: ignore[operator]


def run(quick: bool) -> list[BenchRow]:
    """A row per shape, optimizer and layer: milliseconds of a step's parts, and bytes beside what the formulas say.

    `time_ratio` is to the full layer's forward and backward pass; `efficiency` how much of the predicted ratio, the
    share itself, is reached. `saved` is of the bytes that the formula says would be saved.
    """
    repeats = 3 if quick else 15
    shapes = dict(list(SHAPES.items())[:1]) if quick else SHAPES
    device, rows = bench_device(), []
    for kind in BYTES:
        for name, shape in shapes.items():
            ranks = {share: max(1, int(share * break_even(shape))) for share in SHARES}
            layers: dict[str, tuple[nn.Module, int | None]] = {
                "full": (nn.Linear(shape[1], shape[0], bias=False), None)
            }
            for share, rank in ranks.items():
                layers[f"{share:g} of H"] = (_low_rank(shape, rank), rank)
            layers["seed, 0.75 of H"] = (SeedLowRank(shape, ranks[0.75]), ranks[0.75])
            made = {key: _step(layer.to(device), kind, shape, device) for key, (layer, _) in layers.items()}
            steps = {key: take for key, (take, _) in made.items()}
            taken: dict[str, list[tuple[float, float]]] = {key: [] for key in steps}
            for repeat in range(repeats + 1):
                for key, take in steps.items():
                    parts = take()
                    if repeat:  # the first warms up
                        taken[key].append(parts)
            states = {key: _state_bytes(optimizer) for key, (_, optimizer) in made.items()}
            rows += _rows(kind, name, shape, layers, taken, states, name_of(device))
    _show(rows)
    return rows


def _low_rank(shape: tuple[int, int], rank: int) -> SwitchedLinear:
    layer = SwitchedLinear(LayerForm("low_rank", rank=rank, scaling=1.0, since=0), shape, None, "cpu")
    for factor in (layer.A, layer.B):
        nn.init.normal_(factor, std=rank**-0.5)
    return layer


def _step(
    layer: nn.Module, kind: str, shape: tuple[int, int], device: torch.device
) -> tuple[Callable[[], tuple[float, float]], torch.optim.Optimizer]:
    """A step of the layer by itself, which gives seconds of both passes and of the optimizer; and that."""
    trained = [p for p in layer.parameters() if p.requires_grad]
    adamw = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}
    group: dict[str, Any] = {"params": trained, "kind": kind, "lr": 1e-4, **adamw}
    optimizer = MuonAdamW([{**group, "momentum": 0.95}], torch.float32)
    if isinstance(layer, SwitchedLinear):
        optimizer.pairs = [layer]
    x = torch.randn(TOKENS, shape[1], device=device, requires_grad=True)
    watch = Stopwatch(device)

    def take() -> tuple[float, float]:
        optimizer.zero_grad()
        watch.start()
        layer(x).square().mean().backward()
        passes = watch.stop()
        watch.start()
        optimizer.step()
        return passes, watch.stop()

    return take, optimizer


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value.ndim)


def _rows(
    kind: str,
    name: str,
    shape: tuple[int, int],
    layers: dict[str, Any],
    taken: dict[str, Any],
    states: dict[str, int],
    device: str,
) -> list[BenchRow]:
    full_bytes, rows = 0, []
    passes_of_full = statistics.median(passes for passes, _ in taken["full"])
    for key, (layer, rank) in layers.items():
        passes = statistics.median(part for part, _ in taken[key])
        held = sum(t.nbytes + (t.nbytes if t.requires_grad else 0) for t in layer.parameters())
        held += sum(buffer.nbytes for buffer in layer.buffers())
        held += states[key]
        full_bytes = full_bytes or held
        row = {"optimizer": kind, "shape": name, "layer": key, "rank": rank, "device": device, "bytes": held}
        row |= {"passes_seconds": passes, "optimizer_seconds": statistics.median(part for _, part in taken[key])}
        row |= {"time_ratio": passes / passes_of_full, "efficiency": None, "saved": None}
        if rank is not None:
            share = rank / break_even(shape)
            predicted = BYTES[kind] * (shape[0] * shape[1] - rank * sum(shape))
            row["efficiency"] = share / row["time_ratio"]
            row["saved"] = (full_bytes - held) / predicted if share < 0.99 else None
        rows.append(row)
    return rows


def _show(rows: list[BenchRow]) -> None:
    for kind in dict.fromkeys(row["optimizer"] for row in rows):
        place = f"{rows[0]['device']}, {torch.get_num_threads()} threads"
        table = Table(title=f"A layer's step over {TOKENS} tokens under {kind}, {place}")
        for heading in ("shape", "layer", "passes ms", "of full", "efficiency", "optimizer ms", "MB", "of saving"):
            table.add_column(heading, justify="left" if heading in ("shape", "layer") else "right")
        for row in rows:
            if row["optimizer"] == kind:
                efficiency, saved = ("–" if row[key] is None else f"{row[key]:.0%}" for key in ("efficiency", "saved"))
                table.add_row(
                    *(row["shape"], row["layer"], f"{1e3 * row['passes_seconds']:.0f}", f"{row['time_ratio']:.2f}"),
                    *(efficiency, f"{1e3 * row['optimizer_seconds']:.0f}", f"{row['bytes'] / 1e6:.0f}", saved),
                )
        console.print(table)
