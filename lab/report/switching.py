"""Switching of layers in a run, read from what it left: forms over the steps, and their cost. Standard library only."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lab import record
from lab.errors import UsageError
from lab.record.switches import RIDES_ALONG
from lab.report.run import Run

SWITCHES, LEDGER = "switches.jsonl", "ledger/rows.jsonl"
ROLLED_BACK = "loss_rose"
WORD = 4  # bytes of float32, in which weights, gradients and moments are held


@dataclass(frozen=True)
class Form:
    """A layer as it is at a moment."""

    rank: int  # the smaller side where it is full
    trained: int  # entries
    frozen: int = 0  # entries of what rides along: a fading residual, or a delta's weight
    low: bool = False

    def flops(self) -> float:
        """Of both passes, in units of a trained entry's."""
        return self.trained + RIDES_ALONG * self.frozen

    def bytes(self, moments: int) -> int:
        """Of weight, gradient and so many moments."""
        return WORD * ((2 + moments) * self.trained + self.frozen)


@dataclass(frozen=True)
class Moment:
    """The layers that may switch, all together, from a step on until the next moment."""

    step: int
    low: int  # layers
    rank: float  # mean over the layers
    trained: int  # entries
    flops: float  # of both passes, of full layers'
    bytes: int  # of weights, gradients and moments; before the first step of weights alone


@dataclass(frozen=True, kw_only=True)
class Switching:
    """What one run's layers did."""

    names: tuple[str, ...]  # of the layers that may switch
    switched: int  # of them that were ever low-rank
    first: int | None  # optimizer steps before the first switch
    returned: int  # times that a layer became full again, roll-backs apart
    rolled_back: int
    moments: tuple[Moment, ...]
    full_bytes: int  # of the same layers, were all full
    step_seconds: tuple[float | None, float | None]  # median with all layers full, and at the fewest FLOPs
    step_ratio: float | None  # of the latter over the former, as the FLOPs of both passes alone would have it

    @property
    def layers(self) -> int:
        """How many may switch."""
        return len(self.names)

    @property
    def end(self) -> Moment:
        """How the run ended."""
        return self.moments[-1]

    @property
    def peak_bytes(self) -> int:
        """Most that was held at once; a switch's own working memory is not counted."""
        return max(moment.bytes for moment in self.moments)

    @property
    def least(self) -> Moment:
        """The moment after the first step at which fewest entries trained."""
        return min(self.after_start, key=lambda moment: moment.trained)

    @property
    def least_rank(self) -> float:
        """The lowest mean rank from the first step on, which need not be where fewest entries trained."""
        return min(moment.rank for moment in self.after_start)

    @property
    def whole(self) -> int:
        """Entries of the layers when all are full."""
        return self.moments[0].trained

    @property
    def least_bytes(self) -> int:
        """Least that was held from the first step on."""
        return min(moment.bytes for moment in self.after_start)

    @property
    def lowers_peak(self) -> bool:
        """True where the peak is below that of all layers full."""
        return self.peak_bytes < self.full_bytes

    @property
    def fall(self) -> tuple[Moment, Moment] | None:
        """The largest fall of the mean rank from one moment to a later one; None where it never fell."""
        best = None
        for i, before in enumerate(self.after_start):
            for after in self.after_start[i + 1 :]:
                if before.rank - after.rank > (best[0].rank - best[1].rank if best else 0):
                    best = before, after
        return best

    @property
    def after_start(self) -> tuple[Moment, ...]:
        """The moments from the first step on."""
        return self.moments[1:]

    def row(self) -> dict[str, Any]:
        """Its columns of runs.csv."""
        full, low = self.step_seconds
        return {
            "layers": self.layers,
            "layers_switched": self.switched,
            "first_switch_step": self.first,
            "returns": self.returned,
            "rollbacks": self.rolled_back,
            "layers_low_at_end": self.end.low,
            "mean_rank_least": self.least_rank,
            "mean_rank_end": self.end.rank,
            "layer_params_least": self.least.trained,
            "layer_params_end": self.end.trained,
            "training_bytes_full": self.full_bytes,
            "training_bytes_peak": self.peak_bytes,
            "training_bytes_least": self.least_bytes,
            "training_bytes_end": self.end.bytes,
            "step_seconds_full": full,
            "step_seconds_low": low,
            "step_ratio_by_flops": self.step_ratio,
        }


def switching_of(run: Run) -> Switching | None:
    """What the layers did that a run with ticks measured; None for one without, or of adapters on a frozen base.

    Raises UsageError for a file that cannot be read.
    """
    if run.record.config.get("method") != "full" or not (run.path / LEDGER).exists():
        return None
    rows, shapes = run.rows(SWITCHES), _shapes(run.path / LEDGER)
    moments = 1 if (run.record.config.get("optim") or {}).get("matrix_lr") is not None else 2
    return replay(rows, shapes, moments, *_timing(run))


def replay(
    rows: Iterable[Mapping[str, Any]],
    shapes: Mapping[str, tuple[int, int]],
    moments: int,
    passes_share: float | None = None,
    timed: Iterable[tuple[int, int, float]] = (),
) -> Switching:
    """Forms of the layers over the steps, from the rows of switches.jsonl.

    `shapes` are those of all layers that may switch, `moments` the optimizer's a trained entry (Muon 1, AdamW 2),
    `timed` (first step, last step, seconds a step) of stretches that were timed, `passes_share` of a step's FLOPs is in
    the layers' two passes.
    """
    forms = {name: Form(min(shape), math.prod(shape)) for name, shape in shapes.items()}
    whole = sum(form.trained for form in forms.values())
    full_bytes = sum(form.bytes(moments) for form in forms.values())

    def at(step: int, held: int | None = None) -> Moment:
        each = forms.values()
        return Moment(
            step,
            sum(form.low for form in each),
            sum(form.rank for form in each) / len(forms),
            sum(form.trained for form in each),
            sum(form.flops() for form in each) / whole,
            sum(form.bytes(moments) for form in each) if held is None else held,
        )

    found, rows = [at(0, WORD * whole)], list(rows)
    if not any(row["step"] == 0 for row in rows):
        found.append(at(0))
    for step in sorted({row["step"] for row in rows}):
        for row in (row for row in rows if row["step"] == step):
            shape = shapes[row["layer"]]
            full = Form(min(shape), math.prod(shape))
            frozen = full.trained if row["to"] in ("fading", "delta") else 0
            low = Form(row["rank"] or 0, row["parameters_after"], frozen, low=True)
            forms[row["layer"]] = full if row["to"] == "full" else low
        found.append(at(step))
    back = [row for row in rows if row["to"] == "full"]
    seconds, ratio = _step_seconds(found[1:], timed, passes_share)
    return Switching(
        names=tuple(forms),
        switched=len({row["layer"] for row in rows if row["to"] != "full"}),
        first=min((row["step"] for row in rows), default=None),
        returned=sum(row["reason"] != ROLLED_BACK for row in back),
        rolled_back=sum(row["reason"] == ROLLED_BACK for row in back),
        moments=tuple(found),
        full_bytes=full_bytes,
        step_seconds=seconds,
        step_ratio=ratio,
    )


def _step_seconds(
    moments: list[Moment], timed: Iterable[tuple[int, int, float]], passes_share: float | None
) -> tuple[tuple[float | None, float | None], float | None]:
    """Median seconds of stretches without a switch inside: all layers full, at the fewest FLOPs; and the FLOPs' ratio.

    What fades rides along for a while, and layers may switch one after another, so that only one state is timed.
    """
    full, low = list[float](), dict[float, list[float]]()
    for first, last, seconds in timed:
        during = [moment for moment in moments if moment.step < last]
        if not during or during[-1].step > first:
            continue  # a switch inside
        (low.setdefault(during[-1].flops, []) if during[-1].low else full).append(seconds)
    fewest = min(low, default=None)
    ratio = None if fewest is None or passes_share is None else 1 - passes_share * (1 - fewest)
    after = None if fewest is None else statistics.median(low[fewest])
    return (statistics.median(full) if full else None, after), ratio


def _timing(run: Run) -> tuple[float | None, list[tuple[int, int, float]]]:
    """The layers' two passes, as a share of a step's FLOPs, and timed stretches: (first, last step, seconds a step)."""
    bound = (run.record.spectral.get("before") or {}).get("bound") or {}
    steps, rates = run.curve("tokens_per_second")
    tokens = dict(zip(*run.curve("tokens"), strict=True))
    stretches = []
    for (before, after), rate in zip(pairwise([0.0, *steps]), rates, strict=True):
        if rate > 0 and before < after and {before, after} <= tokens.keys():
            stretches.append((int(before), int(after), (tokens[after] - tokens[before]) / rate / (after - before)))
    return bound.get("passes_share"), stretches


def _shapes(path: Path) -> dict[str, tuple[int, int]]:
    """Shapes (out, in) of the layers that may switch, from the head of a run's ledger."""
    record.check_own(path)
    try:
        with path.open(encoding="utf-8") as file:
            head = record.parse(file.readline().partition(" ")[2])
    except ValueError as error:
        raise UsageError(f"{path} is not readable ({error}); its switches are left out.") from None
    return {name: tuple(target["shape"]) for name, target in head["targets"].items()}
