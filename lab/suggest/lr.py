"""Learning rate of an arm, before any run: plain LoRA's on the same model, lowered where its start is more curved."""

import copy
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.config import RunConfig, bases, plain_of
from lab.config.validate import DEFAULTS
from lab.errors import UsageError

# The best rate of plain LoRA (A Kaiming, B = 0) where it is another than the default of its base: short runs like more.
SHIPPED = "lab:base"
ANCHORS: Mapping[str, tuple[float, str]] = {
    SHIPPED: (1e-2, "the shipped base: best of quarter decades at 21 steps of 4 examples (docs/suggest.md)"),
}
# Fitted on six starts of the shipped base and tried on others (docs/suggest.md), not derived: for the same training in
# other units the right power is 1/2, since Adam's steps are as large whatever the gradient.
POWER = 0.2
EXAMPLES = 8  # that the curvature is of; an eigenvalue of 64 costs eight times as much
LICENCE = (
    "a start for a sweep, no verdict: fitted on short runs of the shipped base; on SmolLM2-135M it met two starts of "
    "three, and pissa's best rate was 2.4 times lower"
)
SHARE, FEWEST = 0.1, 10  # of the run's steps that a check takes, and at least so many
AROUND = 10**0.25  # a check's other two rates: a quarter decade to each side


@dataclass(frozen=True)
class Predicted:
    """A rate, and what it follows from."""

    anchor: float
    source: str  # where the anchor is from
    curvature: float | None = None  # the largest eigenvalue of the loss's Hessian in (A, B) at step 0, of the arm
    plain: float | None = None  # and of plain LoRA at the same rank; both None where the arm is plain LoRA

    @property
    def rate(self) -> float:
        """The prediction, to three digits."""
        factor = 1.0 if self.curvature is None or self.plain is None else (self.plain / self.curvature) ** POWER
        return float(f"{self.anchor * factor:.3g}")

    def reasons(self) -> list[str]:
        """A sentence for each step from the anchor to the rate."""
        said = [
            f"anchor {self.anchor:g}: plain LoRA's best on {self.source}",
            "rank: no factor; at a fixed alpha the best rate is flat in it",
        ]
        if self.curvature is None or self.plain is None:
            return [*said, "init: no factor; this is plain LoRA"]
        return [
            *said,
            f"curvature at step 0: {self.curvature:.3g}, of plain LoRA {self.plain:.3g}, so "
            f"({self.plain:.3g} / {self.curvature:.3g})^{POWER:g} = {(self.plain / self.curvature) ** POWER:.2f}",
        ]


def predict(config: RunConfig, anchor: float | None = None, examples: int = EXAMPLES) -> Predicted:
    """The rate for a config, from `anchor` or, where there is none, from what is known of its base.

    Raises UsageError for method=full, for a base of which nothing is known, and where a curvature is not above 0.
    """
    if config.method == "full":
        raise UsageError(
            "method=full has no adapter, and these rules are of adapters; start from a tenth of plain LoRA's rate."
        )
    rate, source = (anchor, "this model, as given") if anchor is not None else anchor_of(config)
    if config.init == DEFAULTS["init"]:
        return Predicted(rate, source)
    found = {name: curvature(arm, examples) for name, arm in (("arm", config), ("plain", plain(config)))}
    for name, value in found.items():
        if not 0 < value < math.inf:
            raise UsageError(
                f"the curvature of {'plain LoRA' if name == 'plain' else 'this arm'} is {value:.3g}, which predicts "
                "nothing; choose optim.lr by a study."
            )
    return Predicted(rate, source, found["arm"], found["plain"])


def anchor_of(config: RunConfig) -> tuple[float, str]:
    """Plain LoRA's best rate on this kind of base, and where that is from; raises UsageError where none is known."""
    remedy = "sweep it once, with init=random, and give it by --anchor."
    name, settings = config.model.get("name_or_path"), plain_of(config)
    base = bases.of(settings)
    if base is bases.UNKNOWN:
        raise UsageError(f"nothing is known of plain LoRA's best rate on a model from scratch; {remedy}")
    for key in bases.departures(settings):
        known, given = _short(bases.ANCHORED[key]), _short(settings[key])
        raise UsageError(f"plain LoRA's best rate is known for {key}={known} and not for {key}={given}; {remedy}")
    return ANCHORS.get(name, (base.lr, base.lr_from))


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def plain(config: RunConfig) -> RunConfig:
    """The same run as plain LoRA."""
    other = copy.deepcopy(config)
    other.init = copy.copy(DEFAULTS["init"])
    return other


def curvature(config: RunConfig, examples: int = EXAMPLES) -> float:
    """The largest eigenvalue of the Hessian, in what trains, of the mean training loss at step 0; float32."""
    from lab.data.corpus import load_corpus
    from lab.evidence.statistics import choose
    from lab.model import base_of
    from lab.run.parts import Parts
    from lab.run.setup import adapt, base_hashes, load_base, resolve_hardware
    from lab.suggest.curvature import hessian_product, largest_eigenvalue
    from lab.training.loss import LabelGate
    from lab.training.progress import aloud
    from lab.training.pulse import beat_at_every_pass

    config = copy.deepcopy(config)
    config.hardware.precision, config.hardware.devices = "32-true", 1
    parts, hardware = Parts.of(config), resolve_hardware(config)
    corpus = load_corpus(parts.data, parts.model.tokenizer(), config.evaluate.max_examples)
    net, targets = load_base(parts.model, config, hardware)
    beat_at_every_pass(net)
    hashes, train = base_hashes(parts.model, net, config.seed), corpus.train.samples
    name = getattr(parts.init, "label", type(parts.init).__name__)
    with aloud(f"initialisation by {name}"):
        net = adapt(net, targets, parts, config, hardware, train, corpus.pad_id, hashes).net.eval()
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    with LabelGate(base_of(net)) as gate, aloud(f"curvature at step 0 of {name}, by ten products with the Hessian"):
        product = hessian_product(net, gate, trained, choose(train, examples, config.seed), corpus.pad_id)
        return largest_eigenvalue(product, sum(p.numel() for p in trained), device=hardware.device)


def check(config: RunConfig, rate: float) -> dict[float, float]:
    """Validation loss of short runs at a quarter decade below `rate`, at it, and above; inf where one diverged."""
    from lab.launch import job

    found = {}
    with tempfile.TemporaryDirectory(prefix="lab-suggest-") as folder:
        for each in (float(f"{near:.3g}") for near in (rate / AROUND, rate, rate * AROUND)):
            short = copy.deepcopy(config)
            short.optim.lr, short.optim.lr_from = each, "lab.suggest lr --check"
            short.schedule.max_epochs, short.schedule.max_steps = None, _steps(config)
            short.schedule.eval_every_n_steps = short.schedule.save_every_n_steps = _steps(config)
            short.evaluate.test, short.evaluate.num_samples, short.logger = False, 0, {"_target_": None}
            run_dir = Path(folder) / f"lr={each:g}"
            run_dir.mkdir()
            found[each] = job.launch(short, run_dir, choices={}, overrides=[], alone=False, beside=1)
    return found


def _steps(config: RunConfig) -> int:
    """Optimizer steps of a check: SHARE of the run's, at least FEWEST and never more than it has."""
    from lab.config import instantiate
    from lab.data.corpus import load_corpus
    from lab.training.loader import BatchPlan
    from lab.training.optim import total_steps

    corpus = load_corpus(instantiate.make_data(config.data), instantiate.make(config.model).tokenizer())
    lengths = [len(sample.input_ids) for sample in corpus.train.samples]
    whole = total_steps(config.schedule, BatchPlan(lengths, config.schedule.batch_size, 0).steps_per_epoch)
    return min(whole, max(FEWEST, math.ceil(SHARE * whole)))
