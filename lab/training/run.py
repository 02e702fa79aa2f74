"""Run: what one run owns, apart from what its process holds, and the clock of its seconds."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lab.config import RunConfig
from lab.record import RunRecord
from lab.structure import Structure
from lab.training.pairs import Pair

Account = Literal["init", "train", "eval", "analysis", "log"]


class StructuredModel(Protocol):
    """A live model with the structure that it was asked to have."""

    net: Any
    structure: Structure

    def saved_structure(self) -> dict[str, Any]:
        """What a checkpoint keeps of the structure and of the base's identity, in plain types."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors a checkpoint needs; a frozen base is named by its hash."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave; raises where tensors are missing or unexpected."""
        ...

    def restore(self, saved: Mapping[str, Any], state: dict[str, Tensor]) -> None:
        """Take structure and weights of a checkpoint of the same run, whose layers may have other forms."""
        ...

    def switched(self) -> Sequence[Pair]:
        """Pairs that stand in a weight's place."""
        ...

    def fast_parameters(self) -> Sequence[nn.Parameter]:
        """Those that train at optim.lora_plus_ratio times the rate of the others."""
        ...


@dataclass
class Progress:
    """How far a run has come; part of every checkpoint."""

    step: int = 0  # optimizer steps taken
    tokens: int = 0  # real tokens trained on, padding not counted
    labelled_tokens: int = 0  # those of them that were predicted
    best_val_loss: float | None = None
    best_step: int | None = None
    train_loss: float | None = None  # of the last logged step


class Clock:
    """Seconds of a run by account; time in a nested span is that span's alone."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device  # a GPU is waited for at both ends of an analysis: its share is stated to the percent
        self.seconds: dict[Account, float] = {}
        self.started = time.perf_counter()
        self._open: list[Account] = []
        self._since = self.started

    @contextmanager
    def spent(self, account: Account) -> Iterator[None]:
        """Count the time within the context to an account, and to no other."""
        self.begin(account)
        try:
            yield
        finally:
            self.end()

    def begin(self, account: Account) -> None:
        """Open a span that another call will end."""
        self._wait_for_gpu(account)
        self._settle()
        self._open.append(account)

    def end(self) -> None:
        """End the innermost span."""
        self._wait_for_gpu(self._open[-1])
        self._settle()
        self._open.pop()

    def stop(self) -> None:
        """End all spans, whatever had opened them."""
        self._settle()
        self._open.clear()

    def of(self, account: Account) -> float:
        """Seconds of an account so far."""
        self._settle()
        return self.seconds.get(account, 0.0)

    @property
    def total(self) -> float:
        """Wall clock since the run's start; after a resume, on top of what the checkpoint had."""
        return time.perf_counter() - self.started

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        self._settle()
        return {**{str(account): seconds for account, seconds in self.seconds.items()}, "total": self.total}

    def go_on(self, state: dict[str, float]) -> None:
        """Count on from what `state` gave."""
        self._settle()
        self.seconds = {account: seconds for account, seconds in state.items() if account != "total"}  # type: ignore[misc]
        self.started -= state["total"]

    def _wait_for_gpu(self, account: Account) -> None:
        if account == "analysis" and self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _settle(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now


@dataclass
class Run:
    """One run: its config, folder, record, model, progress and clock; nothing of the process that trains it."""

    config: RunConfig
    run_dir: Path
    record: RunRecord
    model: StructuredModel
    total_steps: int
    clock: Clock
    progress: Progress = field(default_factory=Progress)
    groups: list[dict[str, Any]] = field(default_factory=list)  # of the optimizer

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps beside weights and optimizer, in plain types."""
        structure = self.model.saved_structure()
        return {"structure": structure, "progress": asdict(self.progress), "clock": self.clock.state()}

    def go_on(self, checkpoint: dict[str, Any]) -> None:
        """Take up progress and clock where a checkpoint left them."""
        saved = checkpoint["progress"]
        self.progress = Progress(**{each.name: saved[each.name] for each in fields(Progress) if each.name in saved})
        self.clock.go_on(checkpoint["clock"] if "clock" in checkpoint else _clock_before(checkpoint))


def _clock_before(checkpoint: dict[str, Any]) -> dict[str, float]:
    """The clock of a checkpoint of before 2026-11-28, which kept it among the progress."""
    saved = checkpoint["progress"]
    analysis = checkpoint.get("callbacks", {}).get("Observer", {}).get("seconds", 0.0)
    return {
        "train": saved["train_seconds"],
        "eval": saved["eval_seconds"],
        "analysis": analysis,
        "total": saved["seconds"],
    }
