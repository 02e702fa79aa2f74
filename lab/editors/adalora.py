"""Editor of AdaLoRA (arXiv:2303.10512): peft's allocator on our layers, called after every step and read back."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel
from peft.tuners.adalora import AdaLoraModel, RankAllocator
from torch import Tensor, nn

from lab.adapter.layer import ADAPTER, LowRankLinear, adapted_layers
from lab.adapter.read import form_of
from lab.editors import Edit
from lab.errors import Mismatch
from lab.layer import Target
from lab.rank_strategy import RankPlan
from lab.rank_strategy.adalora import Adalora
from lab.record import RunRecord
from lab.training import distributed


class _Parameters:
    """The live factors under the names that peft's allocator looks for."""

    def __init__(self, layers: Mapping[str, LowRankLinear], *, copy_values: bool = False) -> None:
        self.layers, self.copy_values = layers, copy_values

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter | Tensor]]:
        for name, layer in self.layers.items():
            assert layer.E is not None, "a layer without Λ"
            yield f"{name}.lora_A.{ADAPTER}", layer.A
            yield _key(name), layer.E.detach().clone() if self.copy_values else layer.E
            yield f"{name}.lora_B.{ADAPTER}", layer.B


def _key(name: str) -> str:
    return f"{name}.lora_E.{ADAPTER}"


class _Allocator(RankAllocator):
    """peft's, with a budget in any unit, and with a budget that cuts nothing (which peft's kthvalue refuses)."""

    def __init__(self, layers: Mapping[str, LowRankLinear], config: AdaLoraConfig, costs: Mapping[str, int]) -> None:
        self.costs = {_key(name): cost for name, cost in costs.items()}
        self.trial = _Parameters(layers, copy_values=True)
        super().__init__(_Parameters(layers), config, ADAPTER)

    def _set_budget_scheduler(self, model: Any) -> None:
        super()._set_budget_scheduler(model)
        self.triplets: int = self.init_bgt
        sizes = {name: values.shape[0] for name, values in model.named_parameters() if name in self.costs}
        self.init_bgt: int = sum(self.costs[name] * size for name, size in sizes.items())
        self.target_bgt = self.peft_config.target_r * sum(self.costs.values())

    def mask_to_budget(self, model: Any, budget: int) -> dict[str, list[bool]]:
        """The triplets of greatest importance that fit; peft's own masks, for the number of triplets that do.

        Nothing is masked here but copies: the masks are applied by every process.
        """
        if budget >= self.init_bgt:
            return {name: [True] * len(p) for name, p in model.named_parameters() if name in self.costs}
        fits, beyond = 0, self.triplets
        while beyond - fits > 1:
            middle = (fits + beyond) // 2
            masks = self._keep(self.trial, middle)
            if sum(self.costs[name] * sum(kept) for name, kept in masks.items()) <= budget:
                fits = middle
            else:
                beyond = middle
        return self._keep(self.trial, fits)

    def _keep(self, model: Any, count: int) -> dict[str, list[bool]]:
        cut: int = self.triplets - count
        masks: dict[str, list[bool]] = super().mask_to_budget(model, self.init_bgt - cut)
        return masks


class AdaloraEditor:
    """AdaLoRA on a live model: importance and masks after each optimizer step, each cut read back from the layers."""

    name = "adalora"

    def __init__(
        self, model: PeftModel, targets: Sequence[Target], strategy: Adalora, rank: int, total_steps: int
    ) -> None:
        self.layers = adapted_layers(model)
        self.strategy, self.targets, self.rank = strategy, targets, rank
        self.last_orthogonality = float("nan")  # of the last step, unweighted and in no logged loss
        self.costs = strategy.costs(targets)
        self.schedule = strategy.schedule(targets, rank, total_steps)
        self.done = 0  # optimizer steps after which the allocator was called
        self.config = AdaLoraConfig(
            init_r=max(layer.A.shape[0] for layer in self.layers.values()),
            target_r=rank,
            tinit=self.schedule.first,
            tfinal=total_steps - self.schedule.last,
            deltaT=strategy.every_n_steps,
            beta1=strategy.beta1,
            beta2=strategy.beta2,
            orth_reg_weight=strategy.orthogonality,
            total_step=total_steps,
        )
        # update_and_allocate reads these four attributes of AdaLoraModel and nothing else of it.
        self.peft_config = {ADAPTER: self.config}
        self.trainable_adapter_name = ADAPTER
        self.model = _Parameters(self.layers)
        self.rankallocator = _Allocator(self.layers, self.config, self.costs)

    def orthogonality(self) -> Tensor:
        """Mean over all P and Q of ‖PᵀP − I‖_F and ‖QQᵀ − I‖_F, a float32 scalar: peft's regulariser, unweighted."""
        distances = []
        for layer in self.layers.values():
            for gram in (layer.A @ layer.A.T, layer.B.T @ layer.B):
                distances.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)))
        return torch.stack(distances).mean()

    def loss_term(self, scale: int) -> Tensor:
        """The regulariser at its weight, times a number."""
        regulariser = self.orthogonality()
        self.last_orthogonality = float(regulariser.detach())
        return regulariser * (self.strategy.orthogonality * scale)

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> list[Edit]:
        """peft's update_and_allocate on rank 0, its masks on every process, then the ranks read back.

        Raises Mismatch where a step was left out or has no gradients, and where the live ranks are not the scheduled.
        """
        if step != self.done + 1:
            raise Mismatch(f"AdaLoRA's ranks were last updated after step {self.done}, and this is step {step}.")
        for name, parameter in self.model.named_parameters():
            if parameter.grad is None:
                raise Mismatch(f"{name} has no gradient after step {step}, so AdaLoRA cannot tell how important it is.")
        if distributed.rank() == 0:
            AdaLoraModel.update_and_allocate(self, step)  # type: ignore[arg-type]
        self.done = step
        if not self.schedule.cuts(step):
            return []
        self.config.rank_pattern = distributed.from_rank_0(lambda: self.config.rank_pattern)
        if self.config.rank_pattern:
            self.rankallocator.mask_using_rank_pattern(self.model, self.config.rank_pattern)
        self.check()
        return [Edit(name, form_of(layer)) for name, layer in self.layers.items()]

    def check(self) -> None:
        """Compare the live model with the schedule at the last step; raises Mismatch naming the first layer."""
        schedule = self.schedule
        if not schedule.cuts(self.done):
            return
        pattern = self.config.rank_pattern or {}
        for name, layer in self.layers.items():
            if _key(name) not in pattern:
                raise Mismatch(f"{name} was left out when AdaLoRA cut ranks at step {self.done}.")
            kept = torch.tensor(pattern[_key(name)], device=layer.E.device)
            if bool(layer.E.detach()[~kept].any()):
                raise Mismatch(
                    f"{name}: the rank is {layer.rank} after step {self.done}, asked {int(kept.sum())} by AdaLoRA."
                )
        budget, used = schedule.budget(self.done), self.used()
        if budget < schedule.initial and not 0 <= budget - used < max(self.costs.values()):
            raise Mismatch(f"AdaLoRA left {used} of {budget} scheduled for step {self.done} in units of the budget.")

    def finish(self, record: RunRecord) -> None:
        """Record the ranks that are left, read back, in place of those of step 0; raises Mismatch if it did not act."""
        if self.done != self.schedule.total:
            raise Mismatch(
                f"AdaLoRA's ranks were updated after {self.done} of {self.schedule.total} steps, so what was trained "
                "is not AdaLoRA."
            )
        self.check()
        record.ranks = self.ranks()
        record.budget = {
            "asked": self.rank * sum(target.cost for target in self.targets),
            "used": sum(record.ranks[target.name] * target.cost for target in self.targets),
            "at_start": sum(layer.A.numel() + layer.B.numel() for layer in self.layers.values()),
        }

    def used(self) -> int:
        """What the triplets that the masks keep cost, in units of the budget."""
        pattern = self.config.rank_pattern
        return sum(
            cost * (sum(pattern[_key(name)]) if pattern else self.layers[name].A.shape[0])
            for name, cost in self.costs.items()
        )

    def ranks(self) -> RankPlan:
        """The rank of each layer now, read back: its values that are not 0; a layer may be left with none."""
        return {name: layer.rank for name, layer in self.layers.items()}

    def state_dict(self) -> dict[str, Any]:
        """Step, masks, and the running means of importance and uncertainty."""
        return {
            "step": self.done,
            "rank_pattern": self.config.rank_pattern,
            "importance": dict(self.rankallocator.exp_avg_ipt),
            "uncertainty": dict(self.rankallocator.exp_avg_unc),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        device = {name: parameter.device for name, parameter in self.model.named_parameters()}
        self.done, self.config.rank_pattern = state["step"], state["rank_pattern"]
        allocator = self.rankallocator
        allocator.exp_avg_ipt = {name: value.to(device[name]) for name, value in state["importance"].items()}
        allocator.exp_avg_unc = {name: value.to(device[name]) for name, value in state["uncertainty"].items()}
        allocator.ipt = dict(allocator.exp_avg_ipt)  # peft asks only whether a name is in it before it is written anew
