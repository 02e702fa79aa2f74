"""One contender of the training bench in a process of its own; prints one JSON line.

python -m lab.bench.contender NAME STEPS FOLDER
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lab import config
from lab.bench.train import BATCH, LR, RANK, WARM_UP
from lab.config import instantiate
from lab.data.corpus import load_corpus
from lab.data.encode import Sample
from lab.model import Model
from lab.record import RunRecord
from lab.training.loader import BatchPlan, collate

OVERRIDES = (
    "data=stdlib_instruct",  # pairs of very different lengths, as instruction data has
    f"rank={RANK}",
    f"schedule.batch_size={BATCH}",
    f"hardware.micro_batch_size={BATCH}",
    f"optim.lr={LR}",
    "schedule.lr_scheduler=constant",
    "schedule.warmup_steps=0",
)
MAX_LENGTH = 256
EXAMPLES = 512


def main() -> None:
    """Measure one contender."""
    name, steps, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    settings = config.compose(*OVERRIDES, f"data.max_length={MAX_LENGTH}")
    model: Model = instantiate.make(settings.model)
    tokenizer = model.tokenizer()
    corpus = load_corpus(instantiate.make({**settings.data, "retention": None}), tokenizer)
    samples = corpus.train.samples[:EXAMPLES]
    import lightning.pytorch  # noqa: F401
    import peft  # noqa: F401
    import transformers.trainer  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    contenders: dict[str, Callable[..., Timing]] = {
        "lab": lab,
        "bare loop": bare_loop,
        "Trainer + peft": trainer,
        "Trainer + peft bf16": partial(trainer, bf16=True),
    }
    tokens, seconds, loss = contenders[name](model, samples, corpus.pad_id, tokenizer, steps, folder)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(json.dumps({"tokens_per_second": tokens / seconds, "peak_bytes": peak, "loss": loss}))


Timing = tuple[int, float, float]  # real tokens, seconds, last training loss


def lab(model: Model, samples: list[Sample], pad_id: int, tokenizer: Any, steps: int, folder: Path) -> Timing:
    """This lab's own loop: LightningModule, callbacks off but the clock."""
    from lightning.pytorch import Callback, Trainer

    from lab.run.parts import Parts
    from lab.run.setup import adapt, base_hashes, load_base
    from lab.training.hardware import resolve
    from lab.training.loader import MicroBatches, Split, TrainLoader
    from lab.training.module import CausalLM
    from lab.training.run import Clock, Run

    settings = config.compose(*OVERRIDES)
    hardware = resolve(settings.hardware, BATCH)
    net, targets = load_base(model, settings, hardware)
    hashes = base_hashes(model, net, settings.seed)
    adapted = adapt(net, targets, Parts.of(settings), settings, hardware, samples, pad_id, hashes)
    module = CausalLM(Run(settings, folder, RunRecord(), adapted.model, steps, Clock()), hardware)
    plan = BatchPlan([len(sample.input_ids) for sample in samples], BATCH, 0)
    batches = MicroBatches(samples, plan, Split(hardware.micro, hardware.accumulate, 1, 0), steps, pad_id)

    class Stopwatch(Callback):
        tokens, began = 0, 0.0

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == WARM_UP:
                self.began = time.perf_counter()
            self.tokens += batch["tokens"] if batch_idx >= WARM_UP else 0

    watch = Stopwatch()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    loop = Trainer(accelerator="cpu", devices=1, max_steps=steps, callbacks=[watch], logger=False, **quiet)  # type: ignore[arg-type]
    loop.fit(module, TrainLoader(batches, 0))
    seconds = time.perf_counter() - watch.began
    last = batches[len(batches) - 1]
    return watch.tokens, seconds, module.step_nats / last["denominator"]


def bare_loop(model: Model, samples: list[Sample], pad_id: int, tokenizer: Any, steps: int, folder: Path) -> Timing:
    """The same work without Lightning or callbacks: same adapters, batches, loss, clipping, fused AdamW."""
    from lab.run.parts import Parts
    from lab.run.setup import adapt, base_hashes, load_base
    from lab.training.hardware import resolve
    from lab.training.loss import Scorer
    from lab.training.optim import make_optimizer

    settings = config.compose(*OVERRIDES)
    hardware = resolve(settings.hardware, BATCH)
    net, targets = load_base(model, settings, hardware)
    hashes = base_hashes(model, net, settings.seed)
    adapted = adapt(net, targets, Parts.of(settings), settings, hardware, samples, pad_id, hashes)
    scorer = Scorer(adapted.net, hardware.device, autocast=False)
    optimizer = make_optimizer(adapted.net, settings.optim, hardware.device)
    trainable = [p for p in adapted.net.parameters() if p.requires_grad]
    plan = BatchPlan([len(sample.input_ids) for sample in samples], BATCH, 0)
    adapted.net.train()
    tokens, began, value = 0, 0.0, 0.0
    for step in range(steps):
        if step == WARM_UP:
            began = time.perf_counter()
        chosen = [samples[i] for i in plan.batch(step)]
        batch = collate(chosen, pad_id)
        count = sum(int((sample.labels != -100).sum()) for sample in chosen)
        loss = scorer.nats(**batch) / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, settings.optim.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        value = float(loss.detach())
        tokens += sum(len(sample.input_ids) for sample in chosen) if step >= WARM_UP else 0
    return tokens, time.perf_counter() - began, value


def trainer(
    model: Model, samples: list[Sample], pad_id: int, tokenizer: Any, steps: int, folder: Path, bf16: bool = False
) -> Timing:
    """transformers.Trainer and peft as their documentation starts one: padded batches in random order, all logits."""
    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

    net = model.load(torch.float32, 0)
    wrapped = get_peft_model(net, LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    rows = [{"input_ids": s.input_ids.tolist(), "labels": s.labels.tolist()} for s in samples]
    seen = {"tokens": 0, "began": 0.0, "loss": 0.0}
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)

    class Stopwatch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == WARM_UP:
                seen["began"] = time.perf_counter()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            seen["loss"] = logs.get("loss", seen["loss"])

    fed: list[int] = []

    def collate_and_count(features: Any) -> Any:
        fed.append(sum(len(feature["input_ids"]) for feature in features))
        return collator(features)

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        learning_rate=LR,
        lr_scheduler_type="constant",
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    Trainer(
        model=wrapped, args=arguments, train_dataset=rows, data_collator=collate_and_count, callbacks=[Stopwatch()]
    ).train()
    seconds = time.perf_counter() - seen["began"]
    return sum(fed[WARM_UP:steps]), seconds, seen["loss"]


if __name__ == "__main__":
    main()
