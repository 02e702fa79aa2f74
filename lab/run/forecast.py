"""Forecast of a run: its seconds by part and its bytes on disk, from a probe of a few seconds on the model itself.

Counted are loading, the base's losses and answers, what an init looks at, training, every evaluation with its samples,
losses, answers and what was learned at the end, checkpoints and export. A base answers at the greatest length; what
training has taught to end is as long as the longest reference. Not counted: an init's decompositions, spectral ticks
and measures of the user's own.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from lab.adapter.build import build, planned, scaling_factor
from lab.config import RunConfig
from lab.data.corpus import Corpus
from lab.data.encode import Sample, prompt_ids
from lab.instruments.first_step import LARGEST_SIDE
from lab.layer import Target, weight_of
from lab.model import weights_sha256
from lab.run.plan import Planned
from lab.run.setup import full_structure, load_base
from lab.spectral.decomposition import exact_basis
from lab.training.answers import Answers
from lab.training.evaluate import batches_of
from lab.training.generate import PROMPTS_PER_BATCH, complete
from lab.training.hardware import Resolved
from lab.training.loader import BatchPlan, MicroBatches, Split, collate
from lab.training.loss import Scorer
from lab.training.optim import make_optimizer

PROBE_SECONDS = 1.0  # of each rate; one batch whatever it takes
PROBED = 1024  # tokens of a batch at most; on a CPU the rate is flat from there on
DISK = 300e6  # bytes a second into a checkpoint that is flushed
BASE = "losses and answers of the base"  # which are known to all jobs of a study but the first
ADAM = 3  # tensors of a trained parameter's size in a checkpoint: itself and two moments


@dataclass(frozen=True)
class Rates:
    """What one device does with one model."""

    load: float  # seconds: the base read and hashed
    train: float  # real tokens a second, forward and backward
    step: float  # seconds of the optimizer
    evaluate: float  # real tokens a second, forward
    sample: float  # seconds of a token of each sample that is shown
    answer: float  # seconds of a token of each of a batch of answers
    asked: int  # tokens of all prompts that are answered
    learned: float  # seconds: the singular vectors of the adapted weights, for what was learned
    trained: int  # bytes of what trains


@dataclass(frozen=True)
class Forecast:
    """What a run will take."""

    seconds: dict[str, float]  # by part
    exported: int  # bytes of adapter/ or model/
    checkpoint: int  # bytes of one; a run leaves three, a job of a study none

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())


def of(run: Planned, rates: Rates) -> Forecast:
    """The forecast of a run at the rates that a probe found."""
    separate = getattr(run.parts.init, "applied_offset", "none") == "separate"
    pair = rates.trained if separate else 0  # the initial one, kept beside
    return Forecast(seconds(run, rates), exported=rates.trained + pair, checkpoint=ADAM * rates.trained + pair)


def probe(run: Planned) -> Rates:
    """The rates of a run's own model and batches on this machine: its base, under pairs that nothing has filled."""
    config, hardware, corpus, answers = run.config, run.hardware, run.corpus, run.answers
    began = time.perf_counter()
    net, targets = load_base(run.parts.model, config, hardware)
    weights_sha256(net)
    load = time.perf_counter() - began
    settings = answers.settings
    shown = len(settings.prompts) or settings.num_samples
    learned = _decompositions(net, targets)
    prompts = prompt_ids([record for record, _ in answers.judged], answers.tokenizer, answers.data.template)
    asked = sum(map(len, prompts))
    beside = asked // max(1, len(prompts))  # positions of a prompt
    at_once = min(len(prompts), PROMPTS_PER_BATCH)
    sample = _seconds_a_token(net, shown, settings.sample_tokens + beside, answers, hardware)
    answer = _seconds_a_token(net, at_once, settings.max_new_tokens + beside, answers, hardware)
    if targets:
        scaling = scaling_factor(config.alpha, config.rank, config.scaling)  # type: ignore[arg-type]
        structure = planned(targets, {target.name: config.rank for target in targets}, scaling=scaling)
        net = build(net, structure, config.adapter.dropout).to(hardware.device)
    else:
        net = build(net, full_structure(net, run.parts.svd_policy))
    with Scorer(net, hardware.device, hardware.autocast) as scorer:
        net.eval()
        with torch.no_grad():
            evaluate = _tokens_a_second(scorer, _held_out(corpus), hardware, lambda nats: None)
        net.train()
        train = _tokens_a_second(scorer, _micro_batches(config, hardware, corpus), hardware, Tensor.backward)
    optimizer = make_optimizer(net, config.optim, hardware.device)
    optimizer.step()  # the first one makes its state
    step = _seconds(optimizer.step, hardware)
    trained = sum(p.numel() * p.element_size() for p in net.parameters() if p.requires_grad)
    return Rates(load, train, step, evaluate, sample, answer, asked, learned, trained)


def seconds(run: Planned, rates: Rates) -> dict[str, float]:
    """Seconds of a run by part."""
    config, corpus, answers, steps = run.config, run.corpus, run.answers, run.steps
    schedule, asked, devices = config.schedule, config.evaluate, run.hardware.devices
    sides = {"val": corpus.val.samples}
    if asked.test:
        sides |= {"test": corpus.test.samples, "retention": corpus.retention}
    losses = {side: _tokens(samples) / rates.evaluate / devices for side, samples in sides.items()}
    mean = _tokens(corpus.train.samples) / len(corpus.train.samples)
    evaluations = math.ceil(steps / schedule.eval_every_n_steps)
    saved = math.ceil(steps / schedule.save_every_n_steps) + evaluations  # the best too, whenever it is a new one
    asking = [each for each in (run.parts.init, run.parts.rank_strategy) if each is not None and each.needs]
    looked_at = min(config.evidence.num_examples, len(corpus.train.samples)) if asking else 0
    batches = math.ceil(len(answers.judged) / PROMPTS_PER_BATCH) if asked.test else 0
    read = asked.test * rates.asked / rates.evaluate  # the prompts, once
    sampled = asked.sample_tokens if asked.prompts else _longest(corpus.val.samples, asked.sample_tokens)
    answered = _longest(corpus.test.samples, asked.max_new_tokens)
    return {
        "loading": rates.load,
        BASE: sum(losses.values()) + batches * asked.max_new_tokens * rates.answer + read,
        "what the init looks at": looked_at * mean / rates.train,
        "training": steps * (schedule.batch_size * mean / rates.train / devices + rates.step),
        "evaluations": evaluations * (losses["val"] + losses.get("retention", 0.0) * asked.forgetting_curve),
        "samples": evaluations * sampled * rates.sample,
        "losses at the end": sum(losses.values()) - losses["val"],
        "answers at the end": batches * answered * rates.answer + read,
        "what was learned": asked.test * rates.learned,
        "checkpoints": saved * ADAM * rates.trained / DISK,
        "export": rates.load,  # read back on the base, or as large as it
    }


def _tokens(samples: Sequence[Sample]) -> int:
    return sum(len(sample.input_ids) for sample in samples)


def _longest(samples: Sequence[Sample], limit: int) -> int:
    """Labelled tokens of the longest, at most `limit`."""
    return min(limit, max((int((sample.labels != -100).sum()) for sample in samples), default=0))


def _held_out(corpus: Corpus) -> Iterator[list[Sample]]:
    """Batches of an evaluation, from those of middle length on."""
    batches = list(batches_of(corpus.val.samples, PROBED))
    while True:
        yield from batches[len(batches) // 2 :]


def _micro_batches(config: RunConfig, hardware: Resolved, corpus: Corpus) -> Iterator[list[Sample]]:
    """The first process's micro-batches, as the run will have them, round and round."""
    samples = corpus.train.samples
    plan = BatchPlan([len(sample.input_ids) for sample in samples], config.schedule.batch_size, config.data_seed)
    split = Split(hardware.micro, hardware.accumulate, hardware.devices, 0)
    steps = plan.steps_per_epoch
    batches = MicroBatches(samples, plan, split, steps, corpus.pad_id)
    middle = len(batches) // 2
    while True:
        for k in [*range(middle, len(batches)), *range(middle)]:
            if chosen := batches[k]["examples"]:
                yield [samples[i] for i in chosen]


def _tokens_a_second(
    scorer: Scorer, batches: Iterator[list[Sample]], hardware: Resolved, then: Callable[[Tensor], Any]
) -> float:
    """Real tokens a second through the model, after a first example that warms it up."""
    done = spent = 0.0
    for number, whole in enumerate(batches):
        batch = whole[: max(1, PROBED // len(whole[0].input_ids)) if hardware.accelerator == "cpu" else None]
        tensors = {k: v.to(hardware.device) for k, v in collate(batch[:1] if number == 0 else batch, 0).items()}
        took = _seconds(partial(_through, scorer, tensors, then), hardware)
        if number > 0:
            done, spent = done + _tokens(batch), spent + took
        if spent > PROBE_SECONDS:
            break
    return done / spent


def _through(scorer: Scorer, tensors: dict[str, Tensor], then: Callable[[Tensor], Any]) -> None:
    then(scorer.nats(**tensors))


class _Timed(StoppingCriteria):
    """The time of each token generated; ends when PROBE_SECONDS have passed since the first, which reads the prompt."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.at.append(time.perf_counter())
        return torch.full((len(input_ids),), self.at[-1] - self.at[0] > PROBE_SECONDS, device=input_ids.device)


def _seconds_a_token(net: Any, prompts: int, positions: int, answers: Answers, hardware: Resolved) -> float:
    """Seconds of one generated token behind each of so many prompts, with a cache of so many positions; 0 for none."""
    if prompts == 0 or positions < 2:
        return 0.0
    word, beyond = torch.tensor([answers.corpus.eos_id]), len(net.get_input_embeddings().weight)  # no word: none ends
    timed = _Timed()
    complete(net, [word] * prompts, [beyond], answers.corpus.pad_id, positions, hardware.device, timed)
    return (timed.at[-1] - timed.at[0]) / (len(timed.at) - 1)


def _decompositions(net: Any, targets: Sequence[Target]) -> float:
    """Seconds of the bases of all targets' weights: of the first of each shape, as often as there are others."""
    modules, shapes = dict(net.named_modules()), Counter(target.shape for target in targets)
    first = {target.shape: target.name for target in reversed(targets) if min(target.shape) <= LARGEST_SIDE}
    weights = {shape: weight_of(modules[name]).detach().float() for shape, name in first.items()}
    return sum(count * _seconds(partial(exact_basis, weights[s])) for s, count in shapes.items() if s in weights)


def _seconds(work: Callable[[], Any], hardware: Resolved | None = None) -> float:
    began = time.perf_counter()
    work()
    if hardware is not None and hardware.accelerator == "gpu":
        torch.cuda.synchronize(hardware.device)
    return time.perf_counter() - began
