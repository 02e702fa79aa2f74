"""Ending of a run: behind the last step the selected weights are evaluated, exported and measured."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from lab.adapter.export import BASE, export, verify_export
from lab.adapter.osf import leaks
from lab.adapter.switched import dense
from lab.adapter.verify import verify_frozen
from lab.config import RunConfig
from lab.data.corpus import Corpus
from lab.editors.editing import Editing
from lab.files import share_weights
from lab.instruments import learned
from lab.instruments.rank_plan import print_plan
from lab.model import base_of, hub
from lab.record import RunRecord, run_files
from lab.run import summary
from lab.run.measures import attempt
from lab.run.parts import Parts
from lab.run.setup import Adapted
from lab.training import checkpoint
from lab.training.answers import Answers
from lab.training.callbacks import Monitor
from lab.training.distributed import any_of, world
from lab.training.evaluate import Evaluation, evaluate
from lab.training.forgetting import ForgettingCurve
from lab.training.hardware import Resolved
from lab.training.interrupt import Interrupted, StopRequest
from lab.training.module import CausalLM
from lab.training.progress import aloud
from lab.training.run import Clock, Run


class Trained(Protocol):
    """What a run's host holds when it has trained."""

    run_dir: Path
    config: RunConfig
    result: RunRecord
    main: bool  # of the process that writes
    hardware: Resolved
    parts: Parts
    tokenizer: PreTrainedTokenizerBase
    corpus: Corpus
    answers: Answers
    adapted: Adapted
    owner: Run
    module: CausalLM
    editing: Editing
    monitor: Monitor
    forgetting: ForgettingCurve | None
    request: StopRequest
    clock: Clock

    def count(self) -> None:
        """Put what has been done so far into the record."""


class Ending:
    """What every process of a run does when it has trained; of several each ends between two parts at a signal."""

    def __init__(self, host: Trained) -> None:
        self.host, self.config, self.result = host, host.config, host.result

    def run(self) -> None:
        """Evaluate and export the selected weights, measure what was asked for besides, and close the record."""
        host, adapted = self.host, self.host.adapted
        if world() == 1:  # all is saved: a signal need wait for nothing
            host.request.at_once = self._stopped()
        self._stop_if_asked()
        self._select()
        host.editing.finish(self.result)
        if adapted.model.structure.kept:
            self.result.spectral["osf"] = leaks(adapted.net)
        if host.main and host.editing.editors and adapted.targets:
            print_plan(self.result.ranks, adapted.targets)
        if adapted.frozen:
            verify_frozen(adapted.net, adapted.frozen)
        self._validate()
        if host.main:
            self._export()
        if self.config.evaluate.test:
            self._judge()
        self._stop_if_asked()
        host.request.at_once = self._stopped()  # no process waits for another from here on
        self._measure()
        host.count()
        self.result.files = run_files.closed(host.run_dir)
        if host.main:
            summary.print_end(self.result, host.run_dir)

    def _select(self) -> None:
        """Go back to the best weights, where they are asked for and not the last."""
        progress = self.host.owner.progress
        if self.config.select == "best" and progress.best_step != progress.step:
            best = checkpoint.best(self.host.run_dir)
            self.host.adapted.model.restore(best["structure"], best["state_dict"])
            self.host.monitor.final = None

    def _validate(self) -> None:
        metrics, val = self.result.metrics, self.host.monitor.final or self._evaluate("val")
        metrics |= {"val_loss": val.loss, "val_perplexity": val.perplexity, "val_bpb": val.bpb}
        if val.bpb is not None and metrics["best_val_loss"] is not None:  # one set of bytes: bits go with nats
            metrics["best_val_bpb"] = val.bpb / val.loss * metrics["best_val_loss"]

    def _judge(self) -> None:
        """The losses of the sides that nothing was chosen by."""
        metrics, corpus = self.result.metrics, self.host.corpus
        if corpus.test.samples:
            self._stop_if_asked()
            metrics["test_loss"] = self._evaluate("test").loss
        if corpus.retention:
            self._stop_if_asked()
            after = self._evaluate("retention").loss
            metrics["retention_loss"] = after
            metrics["forgetting"] = after - (metrics["base_retention_loss"] or 0.0)
            if self.host.forgetting is not None and (level := self.config.evaluate.forgetting_at) is not None:
                metrics["equal_loss_forgetting"] = self.host.forgetting.forgotten_at(level)

    def _evaluate(self, side: str) -> Evaluation:
        host = self.host
        with host.clock.spent("eval"), aloud(f"{side} loss"):
            return evaluate(host.module.scorer, host.corpus.samples(side), host.corpus.pad_id)

    def _export(self) -> None:
        model, run_dir = self.host.adapted.model, self.host.run_dir
        if model.structure.pairs:
            folder = run_dir / "adapter"
            base, revision = hub.resolve(self.result.model["name_or_path"]), self.result.model["revision"]
            if export(model.net, folder, base_model=base, revision=revision).bases_replaced:
                base = str((folder / BASE).resolve())
            verify_export(folder, model.structure, base=base, revision=revision, model=model.net)
        else:
            with dense(base_of(model.net)):
                model.net.save_pretrained(run_dir / "model")
            share_weights(run_dir / "model")
            self.host.tokenizer.save_pretrained(run_dir / "model")

    def _measure(self) -> None:
        """What is asked for besides the losses."""
        host, judged = self.host, self.config.evaluate.test
        net, take = host.adapted.net, partial(attempt, self.result, aloud=host.main)
        with host.clock.spent("eval"):
            if self.config.evaluate.accuracy and judged and host.main:
                with aloud("answers"):
                    take("test_accuracy", lambda: host.answers.accuracy(net))
            for name, measure in host.parts.measures.items():
                take(name, partial(_own_measure, name, measure, net, host.tokenizer))
        if host.main and host.adapted.model.structure.pairs and judged:
            with host.clock.spent("analysis"), aloud("what was learned"):
                take("learned", lambda: learned.measure(net, host.run_dir))

    def _stopped(self) -> str:
        return f"stopped behind the last step, {self.host.owner.progress.step}; resume={self.host.run_dir}"

    def _stop_if_asked(self) -> None:
        """Raises Interrupted, on every process, where a signal has come to one of them."""
        if any_of(self.host.request.signal is not None, self.host.hardware.device):
            raise Interrupted(self._stopped(), self.host.request.signal)


def _own_measure(name: str, measure: Callable[[Any, Any], Any], net: Any, tokenizer: Any) -> dict[str, float]:
    return {name: float(measure(net, tokenizer))}
