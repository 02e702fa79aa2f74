"""A run from start to end in one process: assemble, evaluate the base, fit, evaluate, export."""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from rich.text import Text

from lab import record
from lab.adapter.export import BASE, export, verify_export
from lab.adapter.install import scaling_factor
from lab.adapter.verify import verify_frozen
from lab.config import RunConfig, instantiate
from lab.data.corpus import load_corpus
from lab.data.encode import Sample, preview
from lab.editors import adaptive
from lab.files import share_weights
from lab.instruments import learned, per_module_csv
from lab.instruments.first_step import bytes_of, compared
from lab.instruments.spectra import Observer
from lab.instruments.targets import watched
from lab.model import hub
from lab.record import RunRecord, run_files
from lab.run import summary
from lab.run.setup import Adapted, adapt, base_hashes, check_step0, load_base, readapt
from lab.training import checkpoint, hardware, memory
from lab.training.answers import Answers
from lab.training.base_loss import base_loss
from lab.training.callbacks import Checkpoints, Monitor, StopOnRequest
from lab.training.compile import compile_blocks
from lab.training.distributed import any_of, check_equal, rank, world
from lab.training.evaluate import Evaluation, evaluate
from lab.training.interrupt import Interrupted, StopRequest, stop_on_signal
from lab.training.loader import BatchPlan, MicroBatches, Split, TrainLoader
from lab.training.loss import Scorer
from lab.training.metrics_file import MetricsFile
from lab.training.module import CausalLM
from lab.training.optim import total_steps
from lab.training.positions import check_fits
from lab.training.progress import ProgressBar, console
from lab.training.pulse import Pulse, beat_at_every_pass

log = logging.getLogger(__name__)
PROBE_SAMPLES = 16  # validation samples on which step 0 is compared with the base


class Session:
    """One process of one run; fills the record as facts become known."""

    def __init__(self, run_dir: Path, config: RunConfig, result: RunRecord, main: bool) -> None:
        self.run_dir, self.config, self.result, self.main = run_dir, config, result, main
        self.request = StopRequest()
        self.started = time.perf_counter()
        self.spent = {"init": 0.0, "eval": 0.0, "analysis": 0.0}

    def run(self) -> None:
        """The whole run; raises Diverged or Interrupted where it ends early."""
        config = self.config
        before = self.result.environment.get("precision") if checkpoint.exists(self.run_dir) else None
        self.hardware = hardware.resolve(config.hardware, config.schedule.batch_size, before)
        if self.main:
            console.print(self.hardware.describe())
        hardware.join_group(self.hardware)
        seed_everything(config.seed, workers=True, verbose=False)
        found = checkpoint.newest(self.run_dir)
        step = found[1]["progress"]["step"] if found else None
        check_equal({"the checkpoint's step": step, "the precision": self.hardware.precision})
        self.measures = instantiate.make_measures(config.metrics)
        model, data = instantiate.make(config.model), instantiate.make(config.data)
        self.tokenizer = model.tokenizer()
        self.corpus = load_corpus(data, self.tokenizer, config.evaluate.max_examples)
        self.watched = watched(model, instantiate.make(config.svd_policy), config)
        self.answers = Answers(data, self.corpus, self.tokenizer, config.evaluate, self.hardware.device)
        check_fits(model.skeleton(), self.corpus, config.evaluate, judged=bool(self.answers.judged))
        net, targets = load_base(model, config, self.hardware)
        beat_at_every_pass(net)
        adapted = readapt(net, targets, config, found[1], model) if found else self._fresh(net, targets, model)
        if config.hardware.micro_batch_size is None:
            autocast = config.method == "full" and self.hardware.precision == "bf16-mixed"
            train, pad_id = self.corpus.train.samples, self.corpus.pad_id
            besides = 0
            if config.method == "lora":
                besides = bytes_of(compared(adapted.targets)) + bytes_of(self.watched.targets if self.watched else [])
            self.hardware = memory.fit(adapted.net, self.hardware, train, pad_id, autocast, besides)
        with stop_on_signal(self.request):
            self._fit(adapted, found)
            self._finish(adapted)

    def _fresh(self, net: Any, targets: Any, model: Any) -> Adapted:
        """Describe the data, evaluate the base, install and verify the adapters."""
        corpus, config = self.corpus, self.config
        self.result.data = corpus.record(self._data_name())
        if self.main:
            first = corpus.train.samples[0]
            console.print(Text(f"{self._data_name()}: first training example, masked tokens dimmed", style="bold"))
            console.print(preview(first, self.tokenizer))
            for sentence in corpus.losses():
                console.print(Text(sentence, style="bold red" if sentence.startswith("WARNING") else ""))
        base = Scorer(net, self.hardware.device, autocast=False)
        metrics = self.result.metrics
        hashes = base_hashes(model, net, config.seed)
        for side in ("val", "test", "retention"):
            if samples := self._samples(side):
                began = time.perf_counter()
                known = base_loss(base, samples, corpus.pad_id, hashes.held, self.hardware)
                metrics[f"base_{side}_loss"] = known.loss
                self.spent["eval"] += time.perf_counter() - began
        probe = corpus.val.samples[:PROBE_SAMPLES]
        before = evaluate(base, probe, corpus.pad_id).loss
        base.gate.handle.remove()
        adapted = adapt(net, targets, config, self.hardware, corpus.train.samples, corpus.pad_id, hashes)
        self.spent["init"] += adapted.init_record.get("seconds", 0.0)
        if self.main and adapted.filled is not None:
            per_module_csv.write_rows(self.run_dir / per_module_csv.INIT, adapted.filled.rows())
        scorer = Scorer(adapted.net, self.hardware.device, autocast=False)
        step0 = evaluate(scorer, probe, corpus.pad_id).loss
        scorer.gate.handle.remove()
        check_step0(adapted, before, step0, config)
        summary.describe(self.result, config, adapted, model, self.tokenizer, self.hardware)
        self.result.init = {**adapted.init_record, "base_loss": before, "step0_loss": step0}
        if self.main:
            summary.say_start(self.result, adapted.targets)
            MetricsFile(self.run_dir).start({"step": 0, "tokens": 0, "val_loss": metrics["base_val_loss"]})
            record.write(self.run_dir, self.result)  # what was read back so far outlives a kill
        return adapted

    def _fit(self, adapted: Adapted, found: checkpoint.Found | None) -> None:
        """Train to the last step, from the checkpoint found where there is one; then the model is on its device."""
        config, corpus = self.config, self.corpus
        lengths = [len(sample.input_ids) for sample in corpus.train.samples]
        plan = BatchPlan(lengths, config.schedule.batch_size, config.data_seed)
        total = total_steps(config.schedule, plan.steps_per_epoch)
        if config.hardware.compile:
            log.info("%d blocks compiled", compile_blocks(adapted.net, self.hardware.accelerator))
        self.module = CausalLM(adapted.net, config, self.hardware, total, adapted.structure)
        self.module.progress.eval_seconds, self.spent["eval"] = self.spent["eval"], 0.0  # now in every checkpoint
        tokens = sum(lengths) / plan.steps_per_epoch
        seen = self.result.spectral
        self.watching = [Observer(self.run_dir, self.watched, config, tokens, seen)] if self.watched else []
        adapting = adaptive.start(self.module, self.run_dir, adapted.targets)
        split = Split(self.hardware.micro, self.hardware.accumulate, self.hardware.devices, rank())
        batches = MicroBatches(corpus.train.samples, plan, split, total, corpus.pad_id)
        done = found[1]["progress"]["step"] if found else 0
        if self.main and found:
            console.print(f"resuming from {found[0].name} at step {done} of {total}")
            if "files" in found[1]:  # checkpoints of before 2026-11-27 have none, and are cut back by their steps
                run_files.cut_back(self.run_dir, found[1]["files"])
        with ProgressBar(total, done, enabled=self.main) as bar:
            self.monitor = Monitor(self.run_dir, self._val, self._show_samples, bar, self.started)
            checkpoints = Checkpoints(self.run_dir)
            trainer = Trainer(
                accelerator=self.hardware.accelerator,
                devices=self.hardware.devices,
                strategy="ddp" if self.hardware.devices > 1 else "auto",
                max_epochs=1,
                max_steps=total,
                accumulate_grad_batches=self.hardware.accumulate,
                logger=instantiate.make_logger(config.logger, self.run_dir, done) or False,
                plugins=[hardware.cluster_of(self.hardware), checkpoint.Checkpoint(found)],
                callbacks=[
                    *adapting,
                    *self.watching,  # first, so that the monitor's clock runs around them
                    self.monitor,
                    *adapted.watchers(self.run_dir),
                    checkpoints,
                    StopOnRequest(self.request, checkpoints),
                    Pulse(),  # last: what others do before the first batch may take long
                ],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                num_sanity_val_steps=0,
                log_every_n_steps=1,
                default_root_dir=self.run_dir,
            )
            if done < total:
                loader = TrainLoader(batches, config.hardware.num_workers)
                try:
                    trainer.fit(self.module, loader, ckpt_path=str(found[0]) if found else None)
                finally:
                    if self.module.progress.step >= done:  # else it ended before the checkpoint was read
                        self._count()
            elif found:  # everything but the ending was done
                self._take_up(found[1])
        self.module.to(self.hardware.device)
        if self.main:
            for observer in self.watching:
                observer.close()

    def _take_up(self, saved: dict[str, Any]) -> None:
        """Where the last step's checkpoint left off: the model holds its weights already, the rest is read here."""
        self.module.on_load_checkpoint(saved)
        self.monitor.started -= self.module.progress.seconds
        for observer in self.watching:
            observer.load_state_dict(saved["callbacks"][observer.state_key])
        self._count()

    def _count(self) -> None:
        """Put what has been done so far into the record, whatever the ending."""
        progress = self.module.progress
        self.result.steps = progress.step
        self.result.tokens = progress.tokens + (self.result.init.get("tokens") or 0)  # looked at before step 0, too
        self.result.metrics |= {"best_val_loss": progress.best_val_loss, "best_step": progress.best_step}
        self.result.metrics["train_loss"] = progress.train_loss
        self.result.seconds = {
            "total": time.perf_counter() - self.monitor.started,
            "init": self.result.init.get("seconds", 0.0),
            "train": progress.train_seconds,
            "eval": progress.eval_seconds + self.spent["eval"],
            "analysis": self.spent["analysis"] + sum(observer.seconds for observer in self.watching),
        }

    def _finish(self, adapted: Adapted) -> None:
        """Evaluate and export the selected weights, measure what was asked for besides, and close the record."""
        if world() == 1:  # all is saved: a signal need wait for nothing
            self.request.at_once = self._stopped()
        self._stop_if_asked()
        if self.config.select == "best" and self.module.progress.best_step != self.module.progress.step:
            self.module.load_state_dict(checkpoint.best(self.run_dir)["state_dict"])
            self.monitor.final = None
        adaptive.finish(self.module, adapted.targets, self.result, self.main)
        if adapted.frozen:
            verify_frozen(adapted.net, adapted.frozen)
        scorer, metrics = self.module.scorer, self.result.metrics
        val = self.monitor.final or self._evaluate(scorer, "val")
        metrics |= {"val_loss": val.loss, "val_perplexity": val.perplexity, "val_bpb": val.bpb}
        if val.bpb is not None and metrics["best_val_loss"] is not None:  # one set of bytes: bits go with nats
            metrics["best_val_bpb"] = val.bpb / val.loss * metrics["best_val_loss"]
        if self.main:
            self._export(adapted)
        if self.corpus.test.samples:
            self._stop_if_asked()
            metrics["test_loss"] = self._evaluate(scorer, "test").loss
        if self.corpus.retention:
            self._stop_if_asked()
            after = self._evaluate(scorer, "retention").loss
            metrics["retention_loss"] = after
            metrics["forgetting"] = after - (metrics["base_retention_loss"] or 0.0)
        self._stop_if_asked()
        self.request.at_once = self._stopped()  # no process waits for another from here on
        self._measure(adapted)
        self._count()
        self.result.files = run_files.closed(self.run_dir)
        self.result.switches = 0
        if self.main:
            summary.say_end(self.result, self.run_dir)

    def _measure(self, adapted: Adapted) -> None:
        """What is asked for besides the losses; one that fails is an entry in the record, and not the run's end."""
        net, began = adapted.net, time.perf_counter()
        self.result.failed_measures = {}
        if self.config.evaluate.accuracy and self.main:
            self._attempt("test_accuracy", lambda: self.answers.accuracy(net))
        for name, measure in self.measures.items():
            self._attempt(name, partial(_own_measure, name, measure, net, self.tokenizer))
        self.spent["eval"] += time.perf_counter() - began
        began = time.perf_counter()
        if self.main and self.config.method == "lora":
            self._attempt("learned", lambda: learned.measure(net, self.run_dir))
        self.spent["analysis"] += time.perf_counter() - began

    def _attempt(self, name: str, measure: Callable[[], Mapping[str, float | None]]) -> None:
        """Take a measure; its failure is logged with the traceback, said, and recorded under its name."""
        try:
            self.result.metrics |= measure()
        except Interrupted:
            raise
        except Exception as error:
            self.result.failed_measures[name] = f"{type(error).__name__}: {error}"
            log.exception("%s could not be measured", name)
            if self.main:
                console.print(Text(f"{name} could not be measured: {self.result.failed_measures[name]}", style="red"))

    def _stopped(self) -> str:
        return f"stopped behind the last step, {self.module.progress.step}; resume={self.run_dir}"

    def _stop_if_asked(self) -> None:
        """Raises Interrupted, on every process, where a signal has come to one of them."""
        if any_of(self.request.signal is not None, self.hardware.device):
            raise Interrupted(self._stopped(), self.request.signal)

    def _export(self, adapted: Adapted) -> None:
        if self.config.method == "lora":
            folder, structure = self.run_dir / "adapter", adapted.structure
            base, revision = hub.resolve(self.result.model["name_or_path"]), self.result.model["revision"]
            if export(adapted.net, folder, base_model=base, revision=revision).bases_replaced:
                base = str((folder / BASE).resolve())
            verify_export(
                folder,
                adaptive.plan_left(self.module) or structure["plan"],
                scaling=scaling_factor(self.config.alpha, self.config.rank, self.config.scaling),  # type: ignore[arg-type]
                offset=structure["offset"],
                use_dora=self.config.adapter.use_dora,
                base=base,
                revision=revision,
                model=adapted.net,
            )
        else:
            adapted.net.save_pretrained(self.run_dir / "model")
            share_weights(self.run_dir / "model")
            self.tokenizer.save_pretrained(self.run_dir / "model")

    def _evaluate(self, scorer: Scorer, side: str) -> Evaluation:
        began = time.perf_counter()
        result = evaluate(scorer, self._samples(side), self.corpus.pad_id)
        self.spent["eval"] += time.perf_counter() - began
        return result

    def _samples(self, side: str) -> list[Sample]:
        return self.corpus.retention if side == "retention" else getattr(self.corpus, side).samples

    def _val(self) -> Evaluation:
        return evaluate(self.module.scorer, self.corpus.val.samples, self.corpus.pad_id)

    def _show_samples(self, step: int) -> None:
        self.answers.show(self.module.net, step, self.module.trainer.loggers)

    def _data_name(self) -> str:
        return str(self.config.data["name"])


def _own_measure(name: str, measure: Callable[[Any, Any], Any], net: Any, tokenizer: Any) -> dict[str, float]:
    return {name: float(measure(net, tokenizer))}
