"""Spectral observer of a run in training: which layers are measured when and by which process, and what is recorded."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from lab.instruments.decider import Decider
from lab.instruments.layer_view import LayerViews
from lab.instruments.outlook import Outlook
from lab.instruments.spectral_board import SpectralBoard
from lab.instruments.spectral_console import say_start, say_tick
from lab.instruments.targets import SpectralTargets
from lab.ledger import Mode, Row, Trial, row_of
from lab.process import heartbeat
from lab.spectral.cadence import analysis_flops, cohorts, due, owners
from lab.spectral.diagnosis import Diagnosis
from lab.spectral.tracker import Tracker
from lab.svd_policy import decisions
from lab.svd_policy.reachability import reachability_record
from lab.svd_policy.summary import summarise
from lab.svd_policy.switching import Switching
from lab.svd_policy.tables import summary_table
from lab.training.distributed import at_rank_0, from_rank_0, of_all, rank, world
from lab.training.interrupt import Diverged
from lab.training.module import CausalLM
from lab.training.progress import aloud, console
from lab.training.step import Instrument

log = logging.getLogger(__name__)
MakeTrials = Callable[[Mapping[str, int], torch.optim.Optimizer], Mapping[str, Trial]]


class SpectralObserver(Instrument):
    """Measures the layers due at each tick, records what it saw, and lets the policy decide on the record.

    A tick at step s looks at the weights and the gradient of the step that follows s steps, and at what that step
    applied. Each layer belongs to one process; the main one gathers and writes. It draws no global random number and
    writes to nothing that trains, so that training is bitwise the same without it. Everything a resumed run needs is
    in the checkpoint (bases) or in the ledger (what the policy remembers): rows behind the checkpoint are cut off and
    measured again, the same.
    """

    def __init__(
        self,
        run_dir: Path,
        chosen: SpectralTargets,
        settings: Mapping[str, Any],
        tokens_per_step: float,
        foreseen: Outlook,
        account: dict[str, Any],
    ) -> None:
        self.run_dir, self.policy, self.settings = run_dir, chosen.policy, settings
        self.targets = {target.name: target for target in chosen.targets}
        self.step_flops, self.outlook = chosen.step_flops(tokens_per_step), foreseen
        self.account = account  # of the run's record
        self.tick_seconds = 0.0
        self.due: Sequence[str] = ()
        self.bases: dict[str, Any] = {}  # of a checkpoint, until training starts
        self.decider = Decider(run_dir, chosen.policy, len(chosen.targets))
        self.guarded: Callable[[], Collection[str]] = tuple  # layers whose updates are projected
        self.trials: MakeTrials | None = None  # of a policy that may ask for some
        self.nats, self.tokens = 0.0, 0  # of this process and of all, since the last tick
        self.outside: dict[str, float | None] = {}  # of this process's layers at this tick
        self.bytes = 0  # held beside what training holds, at most

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Divide the layers over ticks and processes; take up the files where the checkpoint is."""
        with pl_module.run.clock.spent("analysis"):
            self._start(trainer, pl_module)

    def _start(self, trainer: Trainer, module: CausalLM) -> None:
        policy, run = self.policy, module.run
        shapes = {name: target.shape for name, target in self.targets.items()}
        how = (policy.k, policy.oversample, policy.engine, policy.exact_every_n_ticks)
        flops = {name: analysis_flops(shape, *how) for name, shape in shapes.items()}
        self.owner = owners(flops, world())
        allowance = None
        assert policy.every_n_steps is not None, "a policy without ticks"
        if policy.budget is not None:
            allowance = policy.budget * policy.every_n_steps * self.step_flops
        self.groups = cohorts(flops, allowance, policy.layers_per_tick)
        targets, compiled = list(self.targets.values()), run.config.hardware.compile
        self.model = run.model
        self.layers = LayerViews(run.model.net, targets, self.run_dir, compiled)
        self.tracker = Tracker(
            k=policy.k,
            oversample=policy.oversample,
            engine=policy.engine,
            exact_every_n_ticks=policy.exact_every_n_ticks,
            seed=run.config.seed,
        )
        own = {name: basis for name, basis in self.bases.items() if self.owner.get(name) == rank()}
        self.tracker.load_state_dict(_moved(own, module.hardware.device))
        if trainer.is_global_zero:
            self.board = SpectralBoard(trainer.loggers, targets, policy)
            self._take_up(run.progress.step)
        if run.progress.step == 0:
            if trainer.is_global_zero:
                self.layers.save_initial()
            trainer.strategy.barrier()

    def _take_up(self, step: int) -> None:
        """Start the files, or cut them back to what the checkpoint's steps saw, and show what they say."""
        targets = {name: {**asdict(target), "leaf": target.leaf} for name, target in self.targets.items()}
        rows = self.decider.take_up(step, {"policy": self.settings, "targets": targets})
        self.board.remember(rows)
        if len(self.decider.first) == len(self.targets):
            self._say_start(aloud=False)

    def before_step(self, trainer: Trainer, module: CausalLM) -> None:
        """Before the first micro-batch of a step: is it a tick, and of which layers?"""
        self.step = trainer.global_step
        tick, off = divmod(self.step, self.policy.every_n_steps)
        if off == 0:
            self.due = due(self.groups, tick)
            self.round = tick // len(self.groups)
            self.tick_seconds = 0.0
            self.layers.listen(self.due)

    @heartbeat.long()
    @torch.no_grad()
    def gradients_ready(self, trainer: Trainer, module: CausalLM) -> None:
        """All gradients are there, unclipped: measure, and keep what the update will be measured against."""
        if self.due:
            with self._tick(module):
                self._measure()

    def _measure(self) -> None:
        own = [name for name in self.due if self.owner[name] == rank()]
        gradients = self.layers.gradients(self.due, self.owner)
        layers = self.layers
        low = self.model.structure.switched  # where the seed's rule asks about the directions that a rank leaves
        at = {
            name: left
            for name, form in low.items()
            if name in own and form.rank and (left := min(self.targets[name].shape) - form.rank)
        }
        self.tracker.begin(self.round, layers.weights(own), gradients, layers.initial, layers.directions, at)
        self.outside = self.layers.outside(gradients)
        kept = self.layers.keep(own)
        self.bytes = max(self.bytes, kept + _bytes(self.tracker.state_dict()))

    @heartbeat.long()
    @torch.no_grad()
    def after_step(self, trainer: Trainer, module: CausalLM, batch: dict[str, Any]) -> None:
        """The optimizer has stepped: measure its update, gather, write, decide and show."""
        self.nats, self.tokens = self.nats + module.step_nats, self.tokens + batch["denominator"]
        if not self.due:
            return
        with self._tick(module):
            rows = self._gather(trainer, module)
            if self.trials is not None:
                rows = self._try_out(rows, trainer.optimizers[0])
            if rows:
                self.decider.decide(rows)
        with self._tick(module):
            if trainer.is_global_zero:
                self._show(trainer, module, rows)
            broken = from_rank_0(lambda: [row.layer for row in rows if row.reason == "non_finite"])
        self.due = ()
        if broken and self.policy.on_non_finite == "stop":
            raise Diverged("a weight", self.step + 1, batch["examples"], broken[0])

    def _gather(self, trainer: Trainer, module: CausalLM) -> list[Row]:
        """The rows of the layers that are due, on the main process; elsewhere none."""
        own = [name for name in self.due if self.owner[name] == rank()]
        measured = self.tracker.finish(self.layers.updates(), self.layers.momenta(own, trainer.optimizers[0]))
        parts, tokens = at_rank_0((measured, self.outside, self.nats)), self.tokens
        self.nats, self.tokens = 0.0, 0
        if not parts:
            return []
        found = {name: diagnosis for diagnoses, _, _ in parts for name, diagnosis in diagnoses.items()}
        outside = {name: share for _, shares, _ in parts for name, share in shares.items()}
        nats, schedule = sum(part for _, _, part in parts), trainer.lr_scheduler_configs[0].scheduler
        seen = {"loss": nats / tokens if tokens else None, "lr_factor": schedule.lr_lambdas[0](self.step)}
        return [self._row(name, found[name], outside=outside.get(name), **seen) for name in self.due]

    def _row(self, name: str, diagnosis: Diagnosis, **seen: float | None) -> Row:
        form = self.model.structure.layers[name]
        mode: Mode = "full" if form.rank is None else "probation" if form.form == "fading" else "low_rank"
        mode = "guard" if name in self.guarded() else mode
        return row_of(diagnosis, step=self.step, layer=name, mode=mode, rank=form.rank, **seen)

    def _try_out(self, rows: list[Row], optimizer: torch.optim.Optimizer) -> list[Row]:
        """The main process's rows with the trials that the policy asks for, which all processes make together."""
        assert isinstance(self.policy, Switching), "trials of a policy that switches nothing"
        assert self.trials is not None, "no trials"
        ask, states = self.policy.trial_rank, self.decider.states
        wanted = from_rank_0(lambda: {row.layer: ask(row, states.get(row.layer, {})) for row in rows})
        made = self.trials({name: at for name, at in wanted.items() if at is not None}, optimizer)
        return [replace(row, trial=made.get(row.layer)) for row in rows]

    def _show(self, trainer: Trainer, module: CausalLM, rows: Sequence[Row]) -> None:
        """A tick on the console and the dashboard; once every layer was seen, what can happen at all."""
        if "before" not in self.account and len(self.decider.first) == len(self.targets):
            self._say_start(aloud=True)
        cost = {"tick_seconds": self.tick_seconds, "memory_share": self.bytes / _training_state(trainer, module)}
        share = "the first"
        if module.run.progress.step:  # of the steps before this one, too
            clock = module.run.clock
            cost["analysis_share"] = clock.of("analysis") / clock.of("train")
            share = f"{cost['analysis_share']:.2%} of training so far"
        spent = f"{len(rows)} layers in {self.tick_seconds:.2f} s ({share})"
        say_tick(rows, self.decider.recent, f"{spent}; {cost['memory_share']:.1%} on top of the training state")
        self.board.remember(rows)
        self.board.tick(self.step, rows, list(self.decider.recent)[-len(rows) :], cost)
        self.account["cost"] = {"bytes": self.bytes, **cost, "figure_seconds": self.board.figure_seconds}

    def _say_start(self, aloud: bool) -> None:
        first = [self.decider.first[name] for name in self.targets]
        account = self.account["before"] = reachability_record(
            self.policy, first, self.outlook.bound, self.outlook.prospect
        )
        if aloud:
            say_start(self.policy, first, self.outlook, account["cannot_fire"])

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """The dashboard's figures up to the last tick."""
        if trainer.is_global_zero:
            with pl_module.run.clock.spent("analysis"):
                self.board.draw(self.board.last)
                if "cost" in self.account:
                    self.account["cost"]["figure_seconds"] = self.board.figure_seconds

    def finish(self, checkpoint: dict[str, Any] | None) -> None:
        """On the main process: what was in the policy's way, from the files, on console and record."""
        if checkpoint is not None:
            self.load_state_dict(checkpoint["callbacks"][self.state_key])
        if rank() > 0 or not self.policy.rules or not (self.run_dir / decisions.FILE).is_file():
            return
        rows = summarise(decisions.read(self.run_dir), self.policy.rules)
        self.account["after"] = [asdict(row) for row in rows]
        console.print(summary_table(rows))

    def state_dict(self) -> dict[str, Any]:
        """Every process's bases, so that any number of processes may go on; all call it together."""
        bases: dict[str, Any] = {}
        for theirs in of_all(_moved(self.tracker.state_dict(), torch.device("cpu"))):
            bases |= theirs
        losses = of_all((self.nats, self.tokens))
        return {"bases": bases, "found": self.account, "losses": losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where `state_dict` left."""
        self.bases = state_dict["bases"]
        self.account |= state_dict.get("found", {})  # checkpoints of before 2026-11-27 have none
        losses = state_dict.get("losses", [(0.0, 0)])  # nor those of before 2026-11-29
        if len(losses) == world():
            self.nats, self.tokens = losses[rank()]
        else:  # other processes go on with it: the first takes all
            self.nats, self.tokens = (sum(nats for nats, _ in losses) if rank() == 0 else 0.0), losses[0][1]

    @property
    def state_key(self) -> str:
        """Its key among the callbacks of a checkpoint, whatever the class is called."""
        return "Observer"

    @contextmanager
    def _tick(self, module: CausalLM) -> Iterator[None]:
        """Time within is analysis, of this tick."""
        clock = module.run.clock
        before = clock.of("analysis")
        with clock.spent("analysis"), aloud(f"spectra of {len(self.due)} layers"):
            yield
        self.tick_seconds += clock.of("analysis") - before


def _moved(value: Any, device: torch.device) -> Any:
    """Nested mappings of tensors on a device."""
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _bytes(value: Any) -> int:
    if isinstance(value, dict):
        return sum(_bytes(item) for item in value.values())
    return value.nbytes if isinstance(value, torch.Tensor) else 0


def _training_state(trainer: Trainer, module: CausalLM) -> int:
    """Bytes of weights, gradients and optimizer state."""
    weights = sum(p.nbytes + (p.nbytes if p.requires_grad else 0) for p in module.net.parameters())
    return weights + _bytes({i: dict(state) for i, state in enumerate(trainer.optimizers[0].state.values())})
