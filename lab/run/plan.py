"""Plan of a run, as its config describes it: its data, its parts, and what its steps take; no weight is read."""

from dataclasses import dataclass, replace

import psutil
import torch

from lab.config import RunConfig
from lab.data.corpus import Corpus, load_corpus
from lab.model.stored import weight_files
from lab.run.cost import Cost, predict
from lab.run.parts import Parts
from lab.run.setup import policy_targets
from lab.training.answers import Answers
from lab.training.hardware import Resolved, resolve
from lab.training.loader import BatchPlan
from lab.training.optim import total_steps
from lab.training.positions import check_fits

ROOM = 0.8  # of the memory that is free: what a run may take to be tried


@dataclass(frozen=True)
class Planned:
    """A run as its config describes it: its parts, and what its steps take."""

    config: RunConfig
    hardware: Resolved
    parts: Parts
    corpus: Corpus
    answers: Answers
    cost: Cost  # of the longest micro-batch on one device
    flops: float  # of a mean optimizer step, on all devices, the optimizer's own not counted
    steps: int

    @property
    def is_here(self) -> bool:
        """True where this machine has the device and the weights, and room for them: then it can be tried."""
        if self.hardware.accelerator == "gpu":
            here = torch.cuda.device_count() >= self.hardware.devices
            room = torch.cuda.mem_get_info()[0] if here else 0
        else:
            room = psutil.virtual_memory().available
        model = self.parts.model
        drawn = model.name_or_path.startswith("scratch:")
        return self.cost.peak < ROOM * room and (drawn or bool(weight_files(model.name_or_path, model.revision)))


def plan(config: RunConfig) -> Planned:
    """What a run would be; reads its data and its model's config, and no weight."""
    wanted, trains_base = config.hardware, config.method == "full"
    if wanted.accelerator == "gpu" and torch.cuda.device_count() < wanted.devices:
        # A machine that is not here can still be planned for; what it has is what its hardware option says.
        hardware = replace(
            resolve(replace(wanted, accelerator="cpu"), config.schedule.batch_size, trains_base=trains_base),
            accelerator="gpu",
            precision="bf16-mixed" if wanted.precision == "auto" else wanted.precision,
        )
    else:
        hardware = resolve(wanted, config.schedule.batch_size, trains_base=trains_base)
    parts = Parts.of(config)
    tokenizer = parts.model.tokenizer()
    corpus = load_corpus(parts.data, tokenizer, config.evaluate.max_examples)
    answers = Answers(parts.data, corpus, tokenizer, config.evaluate, torch.device("cpu"))
    check_fits(parts.model.skeleton(), corpus, config.evaluate, judged=bool(answers.judged))
    samples = corpus.train.samples
    batches = BatchPlan([len(sample.input_ids) for sample in samples], config.schedule.batch_size, config.data_seed)
    steps = total_steps(config.schedule, batches.steps_per_epoch)
    policy_targets(parts, config, hardware, steps)  # what the policy, or a rank, cannot do here
    step, flops = predict(config, hardware, samples)
    return Planned(config, hardware, parts, corpus, answers, step, flops, steps)
