"""Host of a run: one process, which builds, fits and ends it."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from rich.text import Text

from lab import record
from lab.config import RunConfig, instantiate
from lab.data.corpus import load_corpus
from lab.data.encode import preview
from lab.editors import start
from lab.editors.editing import Editing, batch_loss
from lab.errors import UsageError
from lab.instruments import per_module_csv
from lab.instruments.first_step import FirstStepWatch, bytes_of, sample_of
from lab.instruments.outlook import outlook
from lab.instruments.rank_plan import RankPlanFigure
from lab.instruments.spectra import SpectralObserver
from lab.layer import Target
from lab.record import RunRecord, run_files
from lab.run import summary
from lab.run.ending import Ending, Trained
from lab.run.measures import attempt
from lab.run.parts import Parts
from lab.run.setup import (
    Adapted,
    PolicyTargets,
    adapt,
    base_hashes,
    check_step0,
    load_base,
    policy_targets,
    readapt,
    resolve_hardware,
)
from lab.training import checkpoint, hardware, memory
from lab.training.answers import Answers
from lab.training.base_loss import base_answers, base_loss, probe_loss
from lab.training.callbacks import Checkpoints, Monitor, StopOnRequest
from lab.training.compile import compile_blocks, graphs_made
from lab.training.distributed import check_equal, rank
from lab.training.evaluate import Evaluation, evaluate
from lab.training.forgetting import ForgettingCurve
from lab.training.interrupt import StopRequest, stop_on_signal
from lab.training.loader import BatchPlan, MicroBatches, Split, TrainLoader
from lab.training.loss import Scorer
from lab.training.metrics_file import MetricsFile
from lab.training.module import CausalLM
from lab.training.optim import total_steps
from lab.training.positions import check_fits
from lab.training.progress import ProgressBar, aloud, console
from lab.training.pulse import Pulse, beat_at_every_pass
from lab.training.run import Clock, Run
from lab.training.step import Instrument, StepOrder

log = logging.getLogger(__name__)
PROBE_SAMPLES = 4  # validation samples on which step 0 is compared with the base


class Host(Trained):
    """What one process holds for a run: its hardware, its data, its Trainer; what the run owns is a Run."""

    plan: BatchPlan
    total: int  # optimizer steps
    policy_targets: PolicyTargets
    forgetting: ForgettingCurve | None = None

    def __init__(self, run_dir: Path, config: RunConfig, result: RunRecord, main: bool) -> None:
        self.run_dir, self.config, self.result, self.main = run_dir, config, result, main
        self.request = StopRequest()
        self.clock = Clock()

    def run(self) -> None:
        """The whole run; raises Diverged or Interrupted where it ends early."""
        config = self.config
        before = self.result.environment.get("precision") if checkpoint.exists(self.run_dir) else None
        self.hardware = resolve_hardware(config, before)
        self.clock.device = self.hardware.device
        if self.main:
            console.print(self.hardware.describe())
        hardware.join_group(self.hardware)
        seed_everything(config.seed, workers=True, verbose=False)
        saved = checkpoint.newest(self.run_dir)
        step = saved[1]["progress"]["step"] if saved else None
        check_equal({"the checkpoint's step": step, "the precision": self.hardware.precision})
        self.parts = Parts.of(config)
        model, data = self.parts.model, self.parts.data
        self.tokenizer = model.tokenizer()
        self.corpus = load_corpus(data, self.tokenizer, config.evaluate.max_examples)
        if config.evaluate.forgetting_curve and not self.corpus.retention:
            raise UsageError(
                f"data.retention={config.data['retention']} gives no text here, and evaluate.forgetting_curve=true "
                "needs one; name one with data.retention, or give evaluate.forgetting_curve=false."
            )
        if self.main and config.evaluate.forgetting_curve and not self._watches_forgetting:
            console.print("evaluate.test=false: evaluate.forgetting_curve=true measures nothing here.")
        self.plan, self.total = self._batches()
        self.policy_targets = policy_targets(self.parts, config, self.hardware, self.total)
        self.answers = Answers(data, self.corpus, self.tokenizer, config.evaluate, self.hardware.device)
        check_fits(model.skeleton(), self.corpus, config.evaluate, judged=bool(self.answers.judged))
        net, targets = load_base(model, config, self.hardware)
        beat_at_every_pass(net)
        self.adapted = readapt(net, targets, config, saved[1], model) if saved else self._fresh(net, targets)
        if config.hardware.micro_batch_size is None:
            train, pad_id = self.corpus.train.samples, self.corpus.pad_id
            besides = bytes_of(sample_of(self.adapted.targets)) + bytes_of(self._measured_pairs())
            self.hardware = memory.fit(self.adapted.net, self.hardware, train, pad_id, besides)
        with stop_on_signal(self.request):
            self._fit(saved)
            Ending(self).run()

    def _measured_pairs(self) -> list[Target]:
        """Layers with a pair that the policy measures: each holds a gradient of its weight's size for it."""
        pairs, measured = self.adapted.model.structure.pairs, self.policy_targets.measured
        return [target for target in measured.targets if target.name in pairs] if measured else []

    def _fresh(self, net: Any, targets: list[Target]) -> Adapted:
        """Describe the data, evaluate the base, build and verify the model."""
        corpus, config, metrics = self.corpus, self.config, self.result.metrics
        self.result.data = corpus.record(self._data_name())
        if self.main:
            first = corpus.train.samples[0]
            console.print(Text(f"{self._data_name()}: first training example, masked tokens dimmed", style="bold"))
            console.print(preview(first, self.tokenizer))
            for sentence in [*corpus.losses(), *corpus.repeats()]:
                console.print(Text(sentence, style="bold red" if sentence.startswith("WARNING") else ""))
        hashes = base_hashes(self.parts.model, net, config.seed)
        probe = corpus.val.samples[:PROBE_SAMPLES]
        with Scorer(net, self.hardware.device, autocast=False) as base:
            for side in ("val", "test", "retention") if config.evaluate.test else ("val",):
                if samples := self.corpus.samples(side):
                    with self.clock.spent("eval"), aloud(f"the base's {side} loss"):
                        known = base_loss(base, samples, corpus.pad_id, hashes.held, self.hardware)
                    metrics[f"base_{side}_loss"] = known.loss
            before = probe_loss(base, probe, corpus.pad_id, hashes.held, self.hardware)
        if self.main and self.answers.judged and config.evaluate.test:
            with self.clock.spent("eval"), aloud("the base's answers"):
                attempt(self.result, "base_test_accuracy", lambda: self._base_accuracy(net, hashes.held), aloud=True)
        with self.clock.spent("init"), aloud("initialisation"):
            train = corpus.train.samples
            adapted = adapt(net, targets, self.parts, config, self.hardware, train, corpus.pad_id, hashes)
        if self.main and adapted.filled is not None:
            per_module_csv.write_rows(self.run_dir / per_module_csv.INIT, adapted.filled.rows())
        with Scorer(adapted.net, self.hardware.device, autocast=False) as scorer:
            step0 = evaluate(scorer, probe, corpus.pad_id).loss
        check_step0(adapted, before, step0, config)
        summary.fill_record(self.result, config, adapted, self.parts.model, self.tokenizer, self.hardware)
        self.result.init = {**adapted.init_record, "base_loss": before, "step0_loss": step0}
        if self.main:
            summary.print_start(self.result, adapted.targets)
            MetricsFile(self.run_dir).start({"step": 0, "tokens": 0, "val_loss": metrics["base_val_loss"]})
            if self._watches_forgetting:
                ForgettingCurve.start(self.run_dir, metrics["base_val_loss"], metrics["base_retention_loss"])
            record.write(self.run_dir, self.result)  # what was read back so far outlives a kill
        return adapted

    def _base_accuracy(self, net: Any, weights_sha256: str) -> dict[str, float | None]:
        return base_answers(self.answers, net, weights_sha256, self.hardware).accuracy("base_test_accuracy")

    def _fit(self, saved: checkpoint.Found | None) -> None:
        """Train to the last step, from the checkpoint where there is one; then the model is on its device."""
        config, corpus, adapted = self.config, self.corpus, self.adapted
        plan, total = self.plan, self.total
        if config.hardware.compile:
            log.info("%d blocks compiled", compile_blocks(adapted.net, self.hardware.accelerator))
        self.owner = Run(config, self.run_dir, self.result, adapted.model, total, self.clock)
        started = start.of_strategy(
            self.parts.rank_strategy, adapted.model, adapted.targets, config.rank, total, self.run_dir
        )
        self.editing = Editing(started.editors, adapted.model)
        self.module = CausalLM(self.owner, self.hardware, self.editing.loss_terms)
        instruments = self._instruments()
        boards = [*started.boards, *self._boards(instruments)]
        split = Split(self.hardware.micro, self.hardware.accumulate, self.hardware.devices, rank())
        batches = MicroBatches(corpus.train.samples, plan, split, total, corpus.pad_id)
        done = saved[1]["progress"]["step"] if saved else 0
        if self.main and saved:
            console.print(f"resuming from {saved[0].name} at step {done} of {total}")
            if "files" in saved[1]:  # checkpoints of before 2026-11-27 have none, and are cut back by their steps
                run_files.cut_back(self.run_dir, saved[1]["files"])
        with ProgressBar(total, done, enabled=self.main) as bar:
            curve = ForgettingCurve(self.run_dir, partial(self._evaluated, "retention"))
            self.forgetting = curve if self._watches_forgetting else None
            self.monitor = Monitor(
                self.run_dir, partial(self._evaluated, "val"), self._show_samples, bar, self.forgetting
            )
            checkpoints = Checkpoints(self.run_dir)
            stop = StopOnRequest(self.request, checkpoints)
            order = StepOrder(instruments, self.editing, boards, self.monitor, checkpoints, stop)
            trainer = Trainer(
                accelerator=self.hardware.accelerator,
                devices=self.hardware.devices,
                strategy="ddp" if self.hardware.devices > 1 else "auto",
                max_epochs=1,
                max_steps=total,
                accumulate_grad_batches=self.hardware.accumulate,
                logger=instantiate.make_logger(config.logger, self.run_dir, done) or False,
                plugins=[hardware.cluster_of(self.hardware), checkpoint.Checkpoint(saved)],
                callbacks=[*order.callbacks(), Pulse()],  # Pulse last: the others' starts may take long
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                num_sanity_val_steps=0,
                log_every_n_steps=1,
                default_root_dir=self.run_dir,
            )
            if done < total:
                self.result.evaluations = {}  # those were of weights that change now
                if saved:
                    checkpoint.reopen(saved[1], self.hardware.accumulate)
                loader = TrainLoader(batches, config.hardware.num_workers)
                try:
                    trainer.fit(self.module, loader, ckpt_path=str(saved[0]) if saved else None)
                finally:
                    self.clock.stop()
                    if self.owner.progress.step >= done:  # else it ended before the checkpoint was read
                        self.count()
                if self.owner.progress.step != total:
                    raise RuntimeError(f"training ended at step {self.owner.progress.step} of {total}")
            elif saved:  # everything but the ending was done
                self.owner.go_on(saved[1])
                self.editing.on_load_checkpoint(trainer, self.module, saved[1])
                self.count()
        self.module.to(self.hardware.device)
        for instrument in [*instruments, *boards]:
            instrument.finish(saved[1] if saved and done == total else None)

    def _batches(self) -> tuple[BatchPlan, int]:
        """The batches of an epoch, and the optimizer steps of the run."""
        lengths = [len(sample.input_ids) for sample in self.corpus.train.samples]
        plan = BatchPlan(lengths, self.config.schedule.batch_size, self.config.data_seed)
        return plan, total_steps(self.config.schedule, plan.steps_per_epoch)

    def _instruments(self) -> Sequence[Instrument]:
        """What reads this run in training."""
        instruments: list[Instrument] = []
        if (measured := self.policy_targets.measured) is not None:
            config, plan, hardware = self.config, self.plan, self.hardware
            skeleton, dtype = self.parts.model.skeleton(), hardware.compute_dtype
            foreseen = outlook(measured, skeleton, config.optim, dtype, plan, self.total, hardware.devices)
            tokens, account = float(plan.lengths.sum()) / plan.steps_per_epoch, self.result.spectral
            instruments.append(SpectralObserver(self.run_dir, measured, config.svd_policy, tokens, foreseen, account))
        if (pairs := self.adapted.targets) and self.config.evaluate.test:
            instruments.append(FirstStepWatch(self.run_dir, pairs))
        return instruments

    def _boards(self, instruments: Sequence[Instrument]) -> Sequence[Instrument]:
        """What shows this run as its editors leave it, those of the policy among them."""
        observer = next((each for each in instruments if isinstance(each, SpectralObserver)), None)
        started = start.of_policy(
            self.parts.svd_policy,
            self.adapted.model,
            self.policy_targets.switchable,
            total_steps=self.total,
            run_dir=self.run_dir,
            dtype=self.hardware.compute_dtype,
            loss=partial(batch_loss, self.module),
            observer=observer,
        )
        self.editing.editors.extend(started.editors)
        if (pairs := self.adapted.targets) and self.config.evaluate.test:
            started.boards.append(RankPlanFigure(pairs, edited=bool(self.editing.editors)))
        return started.boards

    def count(self) -> None:
        """Put what has been done so far into the record, whatever the ending."""
        progress, init = self.owner.progress, self.result.init
        self.result.steps, self.result.labelled_tokens = progress.step, progress.labelled_tokens
        self.result.tokens = progress.tokens + (init.get("tokens") or 0)  # looked at before step 0, too
        self.result.switches = self.editing.switches
        if self.config.hardware.compile:
            self.result.environment["compiled_graphs"] = graphs_made()
        self.result.metrics |= {"best_val_loss": progress.best_val_loss, "best_step": progress.best_step}
        self.result.metrics["train_loss"] = progress.train_loss
        spent = {account: self.clock.of(account) for account in ("train", "eval", "analysis")}
        self.result.seconds = {"total": self.clock.total, "init": init.get("seconds", 0.0), **spent}

    @property
    def _watches_forgetting(self) -> bool:
        return self.config.evaluate.forgetting_curve and self.config.evaluate.test

    def _evaluated(self, side: str) -> Evaluation:
        """On the live weights, in whatever account of the clock is open."""
        with aloud(f"{side} loss"):
            return evaluate(self.module.scorer, self.corpus.samples(side), self.corpus.pad_id)

    def _show_samples(self, step: int) -> None:
        with aloud("samples"):
            self.answers.show(self.module.net, step, self.module.trainer.loggers)

    def _data_name(self) -> str:
        return str(self.config.data["name"])
