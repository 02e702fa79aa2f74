"""Callbacks of the engine after an optimizer step: monitor, checkpoints, stop. Their order is `step.StepOrder`."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from lab.record import run_files
from lab.training import checkpoint
from lab.training.distributed import all_reduce, any_of
from lab.training.evaluate import Evaluation
from lab.training.forgetting import ForgettingCurve
from lab.training.interrupt import Diverged, Interrupted, StopRequest
from lab.training.metrics_file import MetricsFile
from lab.training.module import CausalLM
from lab.training.progress import ProgressBar
from lab.training.run import Run

Row = dict[str, float | int | None]
TAGS = {  # of the loggers -> column of metrics.csv
    "train/loss": "train_loss",
    "val/loss": "val_loss",
    "val/bpb": "val_bpb",
    "optim/lr": "lr",
    "optim/grad_norm": "grad_norm",
    "perf/tokens_per_second": "tokens_per_second",
}


class AfterStep(Callback):
    """Base of what acts once per optimizer step, after the optimizer and the scheduler have stepped."""

    def after_step(self, trainer: Trainer, module: CausalLM, batch: dict[str, Any]) -> None:
        """Called with the last micro-batch of the step."""
        raise NotImplementedError


class Monitor(AfterStep):
    """Counts, evaluates and logs: a row of metrics.csv, the logger's scalars and the console per logged step."""

    def __init__(
        self,
        run_dir: Path,
        evaluate: Callable[[], Evaluation],
        show_samples: Callable[[int], None],
        bar: ProgressBar,
        forgetting: ForgettingCurve | None = None,
    ) -> None:
        self.run_dir, self.evaluate, self.show_samples, self.bar = run_dir, evaluate, show_samples, bar
        self.forgetting = forgetting
        self.file: MetricsFile | None = None
        self.final: Evaluation | None = None  # of the last step's weights
        self.since = (0, 0.0)  # tokens and training seconds at the last logged row

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        run: Run = pl_module.run
        if trainer.is_global_zero:
            self.file = MetricsFile(self.run_dir)
            self.file.cut_back(run.progress.step)
            self._show_again(trainer, run, self.file)
        self.since = (run.progress.tokens, run.clock.of("train"))
        run.clock.begin("train")

    def after_step(self, trainer: Trainer, module: CausalLM, batch: dict[str, Any]) -> None:
        run = module.run
        with run.clock.spent("log"):
            self._count(trainer, module, batch)
        if run.progress.step == run.total_steps:
            run.clock.end()

    def _count(self, trainer: Trainer, module: CausalLM, batch: dict[str, Any]) -> None:
        run = module.run
        progress, schedule = run.progress, run.config.schedule
        progress.step, progress.tokens = trainer.global_step, progress.tokens + batch["tokens"]
        progress.labelled_tokens += batch["denominator"]
        last = progress.step == run.total_steps
        due_eval = progress.step % schedule.eval_every_n_steps == 0 or last
        due_log = progress.step % schedule.log_every_n_steps == 0 or due_eval
        nats = torch.tensor([module.step_nats], dtype=torch.float64, device=module.hardware.device)
        if due_log:
            all_reduce(nats)
        row: Row = {"step": progress.step, "tokens": progress.tokens}
        if due_log:
            train_seconds = run.clock.of("train")
            spent = train_seconds - self.since[1]
            row |= {
                "train_loss": float(nats) / max(1, batch["denominator"]),
                "lr": _lr_of_this_step(trainer),
                "grad_norm": module.grad_norm,
                "tokens_per_second": (progress.tokens - self.since[0]) / max(spent, 1e-9),
            }
            self.since = (progress.tokens, train_seconds)
        if due_eval:
            row |= self._evaluate(trainer, module, batch["examples"])
        if due_log:
            row["seconds"] = run.clock.total
            self._log(trainer, run, row)

    def _evaluate(self, trainer: Trainer, module: CausalLM, examples: list[int]) -> Row:
        run, progress = module.run, module.run.progress
        with run.clock.spent("eval"):
            result = self.evaluate()
        if not math.isfinite(result.loss):  # the step just taken broke the weights, and no training loss follows it yet
            bad = next((name for name, p in module.named_parameters() if not bool(torch.isfinite(p).all())), None)
            raise Diverged("the validation loss", progress.step, examples, bad)
        if self.forgetting is not None:
            with run.clock.spent("eval"):
                self.forgetting.evaluated(trainer, progress.step, result.loss)
        self.final = result if progress.step == run.total_steps else None
        if progress.best_val_loss is None or result.loss < progress.best_val_loss:
            progress.best_val_loss, progress.best_step = result.loss, progress.step
            checkpoint.save(self.run_dir, checkpoint.BEST, trainer.save_checkpoint, trainer.is_global_zero)
        if trainer.is_global_zero:
            with run.clock.spent("eval"):
                self.show_samples(progress.step)
        return {"val_loss": result.loss, "val_bpb": result.bpb}

    def _show_again(self, trainer: Trainer, run: Run, file: MetricsFile) -> None:
        """The step that a run goes on from, to loggers that have dropped it with all later ones."""
        step = run.progress.step
        row = file.row_at(step) if step else None
        if row is None or not trainer.loggers:
            return
        _to_loggers(trainer, step, row)
        if "val_loss" in row:
            self.show_samples(step)

    def _log(self, trainer: Trainer, run: Run, row: Row) -> None:
        run.progress.train_loss = row.get("train_loss")
        if not trainer.is_global_zero:
            return
        assert self.file is not None
        self.file.append(row)
        step = int(row["step"] or 0)
        _to_loggers(trainer, step, row)
        done = step / run.total_steps
        elapsed = run.clock.of("train")
        self.bar.update(step, row, elapsed / done - elapsed if done else None)


def _to_loggers(trainer: Trainer, step: int, row: Mapping[str, float | int | None]) -> None:
    scalars = {tag: float(value) for tag, column in TAGS.items() if (value := row.get(column)) is not None}
    for logger in trainer.loggers:
        logger.log_metrics(scalars, step=step)


def _lr_of_this_step(trainer: Trainer) -> float:
    """The rate the step just taken used; the scheduler has already moved on."""
    scheduler: Any = trainer.lr_scheduler_configs[0].scheduler
    factor, step = scheduler.lr_lambdas[0], trainer.global_step - 1
    return float(scheduler.base_lrs[0] * factor(step))


class Checkpoints(AfterStep):
    """Writes `last.ckpt` at intervals and at the end; the one before stays as `previous.ckpt`."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """How far the files have grown that a resumed run goes on with."""
        if trainer.is_global_zero:
            checkpoint["files"] = run_files.prefixes(self.run_dir, run_files.GROWING)

    def after_step(self, trainer: Trainer, module: CausalLM, batch: dict[str, Any]) -> None:
        run = module.run
        step = run.progress.step
        if step % run.config.schedule.save_every_n_steps == 0 or step == run.total_steps:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint now."""
        checkpoint.save(self.run_dir, checkpoint.LAST, trainer.save_checkpoint, trainer.is_global_zero)


class StopOnRequest(AfterStep):
    """Ends the run at the optimizer step after a signal, with a checkpoint; every process agrees."""

    def __init__(self, request: StopRequest, checkpoints: Checkpoints) -> None:
        self.request, self.checkpoints = request, checkpoints

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.request.listen()

    def after_step(self, trainer: Trainer, module: CausalLM, batch: dict[str, Any]) -> None:
        stop = any_of(self.request.signal is not None, module.hardware.device)
        progress = module.run.progress
        if stop and progress.step < module.run.total_steps:  # else the ending sees it, where all is saved
            self.checkpoints.save(trainer)
            by = self.request.signal or "a signal to another process"
            message = f"stopped by {by} at step {progress.step}; resume={self.checkpoints.run_dir}"
            raise Interrupted(message, self.request.signal)
