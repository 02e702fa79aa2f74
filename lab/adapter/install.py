"""One LoraConfig for the whole plan: every layer gets the rank it was given and the scaling that was asked."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from lab.adapter.layer import ADAPTER, LowRankLinear
from lab.errors import UsageError
from lab.layer import Target
from lab.rank_strategy import RankPlan

Scaling = Literal["alpha_over_r", "rslora", "constant"]


def scaling_factor(alpha: float, rank: int, kind: Scaling) -> float:
    """The s in W x + s B A x, one for all layers; `rank` is the run's root rank, whatever a layer's own may be.

    alpha_over_r: alpha / rank (LoRA, arXiv 2106.09685); rslora: alpha / √rank (arXiv 2312.03732); constant: alpha.
    """
    if kind == "constant":
        return alpha
    return alpha / math.sqrt(rank) if kind == "rslora" else alpha / rank


def pattern(name: str) -> str:
    """A key for peft's patterns that one full module name matches and no other.

    peft tries `(.*\\.)?(key)$` and takes the first key that matches, so the name is escaped and anchored.
    """
    return f"^{re.escape(name)}"


def rank_settings(ranks: Mapping[str, int], scaling: float) -> dict[str, Any]:
    """r, lora_alpha and their patterns, such that peft gives each layer its rank and alpha / r = scaling everywhere."""
    if len(set(ranks.values())) == 1:
        rank = next(iter(ranks.values()))
        return {"r": rank, "lora_alpha": _plain(scaling * rank)}
    default = max(ranks.values())
    return {
        "r": default,
        "lora_alpha": _plain(scaling * default),
        "rank_pattern": {pattern(name): rank for name, rank in ranks.items()},
        "alpha_pattern": {pattern(name): _plain(scaling * rank) for name, rank in ranks.items()},
    }


def _plain(alpha: float) -> float:
    """An integer where it is one: other readers of adapter_config.json expect lora_alpha to look like 32."""
    return int(alpha) if alpha == int(alpha) else alpha


def install(
    net: nn.Module,
    targets: Sequence[Target],
    plan: RankPlan,
    *,
    rank: int,
    alpha: float,
    scaling: Scaling,
    dropout: float,
    use_dora: bool,
) -> PeftModel:
    """Wrap the targets of `net` in place, factors float32 and random until `initialise` or a checkpoint fills them.

    Raises UsageError where the plan is not one rank, from 1 to the smaller side, for every target. The global random
    state is left as it was: what a run draws later must not depend on how many adapters it has.
    """
    _check(targets, plan)
    if not alpha > 0:
        raise UsageError(f"alpha={alpha} leaves the adapters without effect; choose a number above 0.")
    modules = dict(net.named_modules())
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        target_modules="|".join(re.escape(target.name) for target in targets),  # peft takes a full match
        lora_dropout=dropout,
        use_dora=use_dora,
        bias="none",
        init_lora_weights=True,
        fan_in_fan_out=all(target.transposed for target in targets),
        **rank_settings({target.name: plan[target.name] for target in targets}, scaling_factor(alpha, rank, scaling)),
    )
    config._register_custom_module({nn.Linear: LowRankLinear, Conv1D: LowRankLinear})
    assert all(target.name in modules for target in targets), "targets of another model"
    with torch.random.fork_rng(devices=[]):
        return get_peft_model(net, config, adapter_name=ADAPTER)


def _check(targets: Sequence[Target], plan: RankPlan) -> None:
    names = {target.name for target in targets}
    if names != plan.keys():
        missing, extra = sorted(names - plan.keys()), sorted(plan.keys() - names)
        raise UsageError(
            f"the rank plan must name each target once; it lacks {missing or 'none'} and adds {extra or 'none'}: "
            "mend rank_strategy."
        )
    for target in targets:
        if not 1 <= plan[target.name] <= target.max_rank:
            raise UsageError(
                f"rank {plan[target.name]} for {target.name} ({target.shape[0]} x {target.shape[1]}) is outside 1 to "
                f"{target.max_rank}; change rank or leave the layer out with adapter.exclude_modules."
            )
