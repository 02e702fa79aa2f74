"""Training loops side by side on one device: this lab's, a bare one that does the same, and transformers.Trainer's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback
from lightning.pytorch import Trainer as Lightning

from lab.adapter.structured import Structured
from lab.bench.device import Stopwatch
from lab.config import RunConfig
from lab.data.encode import Sample
from lab.record import RunRecord
from lab.training.hardware import Resolved
from lab.training.loader import BatchPlan, MicroBatches, Split, TrainLoader, collate
from lab.training.loss import Scorer
from lab.training.module import CausalLM
from lab.training.optim import make_optimizer
from lab.training.run import Clock, Run

WARM_UP = 4  # steps that are not timed


class Timing(NamedTuple):
    """What a loop did in the steps that were timed."""

    tokens: int  # real ones, no padding
    seconds: float
    loss: float  # nats a labelled token of the last step, before its update


@dataclass(frozen=True)
class Work:
    """What every contender trains on."""

    samples: Sequence[Sample]
    pad_id: int
    batch: int  # examples a step
    steps: int
    warm_up: int = WARM_UP

    @property
    def plan(self) -> BatchPlan:
        """The lab's batches, of texts of similar length."""
        return BatchPlan([len(sample.input_ids) for sample in self.samples], self.batch, 0)

    def examples(self, step: int) -> list[Sample]:
        """Those of a step, in the lab's order."""
        return [self.samples[i] for i in self.plan.batch(step)]


class _Staying(CausalLM):
    """Stays on its device, from where Lightning would take it when it has finished, all gigabytes of it."""

    def cpu(self) -> "_Staying":
        return self


def lab_loop(model: Structured, work: Work, settings: RunConfig, hardware: Resolved, folder: Path) -> Timing:
    """This lab's own loop: LightningModule, callbacks off but the clock. Leaves the model on its device."""
    module = _Staying(Run(settings, folder, RunRecord(), model, work.steps, Clock()), hardware)
    split = Split(hardware.micro, hardware.accumulate, 1, 0)
    batches = MicroBatches(work.samples, work.plan, split, work.steps, work.pad_id)
    watch = Stopwatch(hardware.device)
    tokens, seconds = 0, 0.0

    class Watching(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            nonlocal tokens
            if batch_idx == work.warm_up:
                watch.start()
            tokens += batch["tokens"] if batch_idx >= work.warm_up else 0

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            nonlocal seconds
            if batch_idx == work.steps - 1:
                seconds = watch.stop()

    loop = Lightning(
        accelerator=hardware.accelerator,
        devices=1,
        max_steps=work.steps,
        callbacks=[Watching()],
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with module.scorer:
        loop.fit(module, TrainLoader(batches, 0))
    return Timing(tokens, seconds, module.step_nats / batches[len(batches) - 1]["denominator"])


def bare_loop(net: Any, work: Work, settings: RunConfig, hardware: Resolved) -> Timing:
    """The same work without Lightning or callbacks: same adapters, batches, loss, clipping, fused AdamW."""
    device = hardware.device
    optimizer = make_optimizer(net, settings.optim, device)
    trainable = [p for p in net.parameters() if p.requires_grad]
    watch = Stopwatch(device)
    net.train()
    tokens, value = 0, 0.0
    with Scorer(net, device, autocast=hardware.autocast) as scorer:
        for step in range(work.steps):
            if step == work.warm_up:
                watch.start()
            chosen = work.examples(step)
            batch = {name: tensor.to(device) for name, tensor in collate(chosen, work.pad_id).items()}
            count = sum(int((sample.labels != -100).sum()) for sample in chosen)
            loss = scorer.nats(**batch) / count
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable, settings.optim.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            value = float(loss.detach())
            tokens += sum(len(sample.input_ids) for sample in chosen) if step >= work.warm_up else 0
    return Timing(tokens, watch.stop(), value)


def trainer_loop(
    net: Any, work: Work, tokenizer: Any, lr: float, device: torch.device, folder: Path, bf16: bool, same_batches: bool
) -> Timing:
    """transformers.Trainer as its documentation starts one: padded batches, all logits; in random order unless told.

    With `same_batches` it gets those of the lab, in their order.
    """
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

    samples = [s for step in range(work.steps) for s in work.examples(step)] if same_batches else work.samples
    rows = [{"input_ids": s.input_ids.tolist(), "labels": s.labels.tolist()} for s in samples]
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    watch = Stopwatch(device)
    seen = {"seconds": 0.0, "loss": 0.0}
    fed: list[int] = []

    class Watching(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == work.warm_up:
                watch.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == work.steps:
                seen["seconds"] = watch.stop()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            seen["loss"] = logs.get("loss", seen["loss"])

    def collate_and_count(features: Any) -> Any:
        fed.append(sum(len(feature["input_ids"]) for feature in features))
        return collator(features)

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=work.batch,
        max_steps=work.steps,
        learning_rate=lr,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential" if same_batches else "random",
        bf16=bf16,
        use_cpu=device.type == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    Trainer(
        model=net, args=arguments, train_dataset=rows, data_collator=collate_and_count, callbacks=[Watching()]
    ).train()
    return Timing(sum(fed[work.warm_up : work.steps]), seen["seconds"], seen["loss"])
