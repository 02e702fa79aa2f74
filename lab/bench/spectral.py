"""A tick of spectral measurement against the seed's analysis and torch's own.    python -m lab.bench spectral"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from lab.bench import BenchRow
from lab.bench.device import Stopwatch, bench_device, name_of
from lab.bench.spectral_cases import EVERY, Case, Snapshot, train
from lab.spectral.spectrum import singular_values, spectrum_of
from lab.spectral.subspace import subspace_angle
from lab.spectral.tracker import Tracker

K, OVERSAMPLE = 10, 8


def run(quick: bool) -> list[BenchRow]:
    """A row per width and contender, printed as a table and returned for JSON.

    `seconds` is the time of the GPU, where there is one, or the CPU time of one thread for a tick of all layers (one
    block's at depth 12 and 20), the median over ticks and repeats, contenders interleaved; `speedup` is the seed's
    analysis over it. Ours measures what the seed's does and more: singular values, both sides' angles to two earlier
    ticks, energies of gradient and update, rotation. `value_error` (relative, of the k values) and `angle_error`
    (radians, at k) are the largest against full SVDs.
    """
    widths = [(4, 4, 4)] if quick else [(4, 4, 8), (12, 1, 3), (20, 1, 2)]  # depth, blocks, ticks
    device = bench_device()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = []
        for width in track(widths, "widths", console=Console(stderr=True), transient=True):
            rows += _rows(train(*width, device), 3 if width[0] == 4 else 1, device)
    finally:
        torch.set_num_threads(threads)
    Console(width=max(120, Console().width)).print(table(rows, name_of(device)))
    return rows


def _rows(case: Case, repeats: int, device: torch.device) -> list[BenchRow]:
    tracker = Tracker(k=K, oversample=OVERSAMPLE, engine="warm", exact_every_n_ticks=10**9, seed=0)
    tracker.begin(1, case.snapshots[0].weights)
    tracker.finish()
    seconds: dict[str, list[float]] = {}
    timed = partial(_timed, seconds, device)
    products, value_errors, angle_errors = 0, [], []
    before = _exact(case.snapshots[0])
    for tick, snapshot in enumerate(case.snapshots[1:], 2):
        state, now = tracker.state_dict(), _exact(snapshot)
        for _ in range(repeats):
            tracker.load_state_dict(state)
            spent = tracker.products
            with timed("tick"):
                diagnoses = tracker.tick(tick, snapshot.weights, snapshot.gradients, snapshot.updates)
            after = tracker.state_dict()
            products += tracker.products - spent
            with timed("seed"):
                _seed(snapshot, before)
            tracker.load_state_dict(state)
            with timed("same"):
                _same(tracker, tick, snapshot)
            for name, call in OTHERS.items():
                with timed(name):
                    for weight in snapshot.weights.values():
                        call(weight)
        tracker.load_state_dict(after)
        for name, diagnosis in diagnoses.items():
            (U0, _, V0), (U, S, V) = before[name], now[name]
            value_errors.append(float(abs(diagnosis.singular_values[:K] / S.cpu().numpy() - 1).max()))
            angle = diagnosis.angle(K)
            assert angle is not None
            angle_errors.append(abs(angle - max(subspace_angle(U0, U), subspace_angle(V0, V))))
        before = now
    middle = {name: statistics.median(taken) for name, taken in seconds.items()}
    tick_count = repeats * (len(case.snapshots) - 1)
    common: BenchRow = {
        "device": name_of(device),
        "depth": case.depth,
        "layers": case.layers,
        "k": K,
        "oversample": OVERSAMPLE,
    }
    rows = [
        {**common, "contender": CONTENDERS[name], "seconds": taken, "speedup": middle["seed"] / taken}
        for name, taken in middle.items()
    ]
    rows[0] |= {
        "value_error": max(value_errors),
        "angle_error": max(angle_errors),
        "median_angle_error": statistics.median(angle_errors),
        "products_per_layer": products / tick_count / case.layers,
        "share_of_a_step": middle["tick"] / EVERY / case.step_seconds,  # one tick in 20 steps, vocabulary of 256
        "state_bytes": _bytes(tracker.state_dict()),
    }
    return rows


@contextmanager
def _timed(seconds: dict[str, list[float]], device: torch.device, name: str) -> Iterator[None]:
    watch = Stopwatch(device, time.thread_time)
    watch.start()
    yield
    seconds.setdefault(name, []).append(watch.stop())


def _exact(snapshot: Snapshot) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    spectra = {name: spectrum_of(weight, K) for name, weight in snapshot.weights.items()}
    return {name: (spectrum.U, spectrum.S, spectrum.V) for name, spectrum in spectra.items()}


def _seed(snapshot: Snapshot, before: dict[str, tuple[Tensor, Tensor, Tensor]]) -> None:
    """Seed 001's analysis of every layer: an SVD for the metrics, a dense reconstruction, an SVD to remember."""
    for name, W in snapshot.weights.items():
        G = snapshot.gradients[name]
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        torch.acos(torch.linalg.svdvals(before[name][0].mT @ U[:, :K]).min().clamp(-1, 1)).item()
        (torch.linalg.norm(W - U[:, :K] @ torch.diag(S[:K]) @ Vh[:K]) / torch.linalg.norm(W)).item()
        for part in (U[:, :K], U[:, K:]):
            (torch.linalg.norm(part @ (part.mT @ G)) / torch.linalg.norm(G)).item()
        torch.linalg.svd(W, full_matrices=False)


def _same(tracker: Tracker, tick: int, snapshot: Snapshot) -> None:
    """The numbers of the seed's analysis, by this lab's engine: angle, tail error, left energy of the gradient.

    The seed's second share, of the other left directions, is what the first leaves over where U is square.
    """
    diagnoses = tracker.tick(tick, snapshot.weights)
    bases = tracker.state_dict()
    for name, diagnosis in diagnoses.items():
        diagnosis.angle(K)
        diagnosis.tail_error(K)
        G = snapshot.gradients[name]
        (torch.linalg.norm(bases[name]["U"][:, :K].mT @ G) / torch.linalg.norm(G)).item()


OTHERS: dict[str, Callable[[Tensor], Any]] = {
    "exact": singular_values,
    "svd": lambda W: torch.linalg.svd(W, full_matrices=False),
    "svdvals": torch.linalg.svdvals,
    "lowrank": lambda W: torch.svd_lowrank(W, q=K + OVERSAMPLE, niter=2),
}
CONTENDERS = {
    "tick": "this lab's tick",
    "seed": "seed 001's analysis",
    "same": "seed 001's measures, by this lab",
    "exact": "exact spectrum, every 10th tick",
    "svd": "torch.linalg.svd",
    "svdvals": "torch.linalg.svdvals",
    "lowrank": "torch.svd_lowrank",
}


def _bytes(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.nelement() * state.element_size()
    return sum(_bytes(value) for value in state.values()) if isinstance(state, dict) else 0


def table(rows: list[BenchRow], device: str) -> Table:
    """The rows for a terminal."""
    shown = Table(title=f"k = {K}, oversampling {OVERSAMPLE}, {device}, weights {EVERY} Muon steps apart")
    for heading in ("depth", "layers", "contender"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("ms per tick", "speed-up", "value error", "angle error (median)", "products", "of a step"):
        shown.add_column(heading, justify="right")
    for row in rows:
        measured = "value_error" in row
        shown.add_row(
            str(row["depth"]),
            str(row["layers"]),
            row["contender"],
            f"{1e3 * row['seconds']:.1f}",
            f"{row['speedup']:.1f}x",
            f"{row['value_error']:.1e}" if measured else "",
            f"{row['angle_error']:.1e} ({row['median_angle_error']:.1e})" if measured else "",
            f"{row['products_per_layer']:.1f}" if measured else "",
            f"{row['share_of_a_step']:.2%}" if measured else "",
        )
    return shown
