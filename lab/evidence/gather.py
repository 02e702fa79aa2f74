"""Gathering of evidence (gradients, activations, weight changes) that the init scheme and the rank strategy ask for."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lab.config import RunConfig
from lab.data.encode import Sample
from lab.errors import UsageError
from lab.evidence import statistics, weight_change
from lab.evidence.weight_change import WeightChange
from lab.init import InitScheme
from lab.layer import Evidence, Target
from lab.rank_strategy import RankStrategy
from lab.training.progress import console


@dataclass
class EvidenceGatherer:
    """Evidence that the init scheme and the rank strategy of a run ask for, gathered once and accounted for."""

    net: nn.Module
    targets: Sequence[Target]
    config: RunConfig
    train: Sequence[Sample]
    pad_id: int
    device: torch.device
    sentences: list[str] = field(default_factory=list)  # what was looked at, for the record
    tokens: int = 0  # real tokens that passed through the net in forward and backward passes

    def evidence(self, strategy: RankStrategy, scheme: InitScheme) -> tuple[dict[str, Evidence], dict[str, Evidence]]:
        """What the strategy and what the scheme may see; statistics are gathered once for both.

        A weight change is each one's own: the strategy's is a wide run's, the scheme's a warm-up's or a teacher's.
        Raises UsageError where there is no training data, or nothing says where a weight change is to come from.
        """
        needs = (strategy.needs | scheme.needs) - {"delta"}
        gathered: dict[str, Evidence] = {target.name: Evidence() for target in self.targets}
        if needs:
            chosen = statistics.choose(self.train, self.config.evidence.num_examples, self.config.seed)
            self._say(f"{', '.join(sorted(needs)).replace('_', ' ')} of {len(chosen)} training examples")
            gathered = statistics.gather(self.net, self.targets, chosen, needs, self.pad_id, self.device)
            self.tokens += sum(len(sample.input_ids) for sample in chosen)
        return self._with_delta(gathered, strategy), self._with_delta(gathered, scheme)

    def _with_delta(self, gathered: dict[str, Evidence], asking: Any) -> dict[str, Evidence]:
        if "delta" not in asking.needs:
            return gathered
        change = self._change(asking)
        self._say(change.sentence)
        self.tokens += change.tokens
        delta: dict[str, Tensor] = change.delta
        return {name: replace(item, delta=delta[name]) for name, item in gathered.items()}

    def _change(self, asking: Any) -> WeightChange:
        asking = getattr(asking, "of", asking)  # rank_strategy=shuffled asks for another
        common = (self.net, self.targets, self.train, self.config, self.pad_id, self.device)
        if hasattr(asking, "wide_ranks"):
            return weight_change.wide_run(*common, ranks=asking.wide_ranks(self.targets, self.config.rank))
        source = getattr(asking, "source", None)
        if source == "warmup":
            return weight_change.warm_up(*common, steps=asking.warmup_steps, lr=asking.warmup_lr)
        if source == "teacher":
            return weight_change.teacher(self.net, self.targets, asking.teacher)
        raise UsageError(
            f"{type(asking).__name__} needs a weight change and does not say whose; give it source (warmup, teacher)."
        )

    def _say(self, what: str) -> None:
        self.sentences.append(what)
        console.print(f"looked at: {what}")
