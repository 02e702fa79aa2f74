"""Start of the editors that a run's strategy and policy ask for."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from lab.adapter.structured import Structured
from lab.adapter.switched import why_not
from lab.editors import Editor
from lab.editors.adalora import AdaloraEditor
from lab.editors.adalora_file import AdaloraFile
from lab.editors.guard import GuardEditor
from lab.editors.switch import Switcher
from lab.editors.switch_board import GuardBoard, SwitchBoard
from lab.editors.trials import Trials
from lab.errors import UsageError
from lab.init import InitScheme
from lab.init.adalora import Triplets
from lab.layer import Target, find_targets
from lab.rank_strategy import RankStrategy
from lab.rank_strategy.adalora import Adalora
from lab.svd_policy import SvdPolicy
from lab.svd_policy.attack import Guarding
from lab.svd_policy.osf import Osf
from lab.svd_policy.switching import Move, Shapes, Switching
from lab.training.step import Instrument


@dataclass
class Started:
    """Editors, and the boards that show what they do."""

    editors: list[Editor] = field(default_factory=list)
    boards: list[Instrument] = field(default_factory=list)


class Decides(Protocol):
    """Decisions of a tick, asked once a tick for what they want done."""

    def take_moves(self) -> Sequence[Move]:
        """The switches that the last tick asks for, once."""

    def take_guards(self) -> Sequence[tuple[str, bool]]:
        """The layers that the last tick guards (True) or releases, once."""


class Observes(Protocol):
    """What decides at ticks, and is told what is guarded and how a rank is tried."""

    trials: Any
    guarded: Callable[[], Collection[str]]

    @property
    def decider(self) -> Decides:
        """Asked for moves and guards."""


def first_scheme(strategy: RankStrategy, scheme: InitScheme) -> tuple[InitScheme, bool]:
    """What fills the pairs before an editor changes them, and whether there are values between the factors.

    Raises UsageError for a scheme that would not be used.
    """
    if not isinstance(strategy, Adalora):
        return scheme, False
    if getattr(scheme, "label", None) != "random":
        raise UsageError(
            f"rank_strategy=adalora fills its triplets itself, with a product of 0, and init={type(scheme).__name__} "
            "would not be used; choose init=random."
        )
    return Triplets(), True


def of_strategy(
    strategy: RankStrategy | None, model: Structured, targets: Sequence[Target], rank: int, steps: int, run_dir: Path
) -> Started:
    """The editors of a run; none where nothing changes its structure in training."""
    if not isinstance(strategy, Adalora):
        return Started()
    editor = AdaloraEditor(model.net, targets, strategy, rank, steps)
    return Started([editor], [AdaloraFile(run_dir, editor)])


def switchable(
    skeleton: nn.Module, policy: SvdPolicy, weights: torch.dtype, adapters: bool, total_steps: int
) -> dict[str, tuple[int, int]]:
    """The layers that a policy may switch, (out, in), of a model without weights; none where it switches nothing.

    `weights` is the dtype in which the run will hold them. Raises UsageError for adapters, for weights that are not
    float32, for a layer that cannot switch, and for a schedule that cannot be carried out.
    """
    if not isinstance(policy, Switching | Guarding | Osf):
        return {}
    kind = type(policy).__name__
    if adapters:
        raise UsageError(
            f"svd_policy {kind} acts on layers that train in full, and method=lora has none; use method=full, or "
            f"svd_policy=observe."
        )
    if weights != torch.float32:
        raise UsageError(
            f"svd_policy {kind} works on float32 weights, and hardware.precision=bf16-true holds them in "
            f"{str(weights).removeprefix('torch.')}; use hardware.precision=bf16-mixed."
        )
    if isinstance(policy, Guarding) and not isinstance(policy, Switching):
        return {}
    targets = find_targets(skeleton, policy.target_modules, key="svd_policy.target_modules")
    for target in targets:
        if (reason := why_not(skeleton, target.name)) is not None:
            raise UsageError(f"{target.name} {reason}; leave it out of svd_policy.target_modules.")
    shapes = {target.name: target.shape for target in targets}
    if isinstance(policy, Osf):
        for name, shape in shapes.items():
            policy.kept(name, shape)
        return {}
    policy.check_schedule(shapes, total_steps)
    return shapes


def of_policy(
    policy: SvdPolicy,
    model: Structured,
    shapes: Shapes,
    *,
    total_steps: int,
    run_dir: Path,
    dtype: torch.dtype,
    loss: Callable[[], float | None],
    observer: Observes | None,
) -> Started:
    """The editors that carry out what a policy decides, a guard before a switch, and their boards.

    `loss` is the step's, `dtype` that of Muon's products; `observer` decides at ticks, where the policy has any.
    """
    started = Started()
    if isinstance(policy, Guarding):
        guard = GuardEditor(model, policy)
        if observer is not None:
            guard.asked, observer.guarded = observer.decider.take_guards, guard.guarded
        started.editors.append(guard)
        started.boards.append(GuardBoard(guard))
    if isinstance(policy, Switching):
        switcher = Switcher(model, policy, shapes, total_steps, run_dir, dtype)
        switcher.loss = loss
        if observer is not None:
            switcher.asked = observer.decider.take_moves
            observer.trials = Trials(switcher.net, policy, loss)
        started.editors.append(switcher)
        started.boards.append(SwitchBoard(switcher))
    return started
