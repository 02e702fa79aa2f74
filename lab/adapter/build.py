"""Building of a structure into a model: one LoraConfig gives every layer its rank and the one scaling."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from lab.adapter.layer import ADAPTER, LowRankLinear, adapted_layers
from lab.adapter.osf import install_osf
from lab.adapter.switched import install, install_full, switched_layers
from lab.errors import UsageError
from lab.layer import Target
from lab.rank_strategy import RankPlan
from lab.structure import LayerForm, Structure

Scaling = Literal["alpha_over_r", "rslora", "constant"]


def scaling_factor(alpha: float, rank: int, kind: Scaling) -> float:
    """The s in W x + s B A x, one for all layers; `rank` is the run's root rank, whatever a layer's own may be.

    alpha_over_r: alpha / rank (LoRA, arXiv 2106.09685); rslora: alpha / √rank (arXiv 2312.03732); constant: alpha.
    Raises UsageError for an alpha that is not above 0.
    """
    if not alpha > 0:
        raise UsageError(f"alpha={alpha} leaves the adapters without effect; choose a number above 0.")
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


def planned(
    targets: Sequence[Target], plan: RankPlan, *, scaling: float, use_dora: bool = False, values: bool = False
) -> Structure:
    """The structure of a plan's adapters as they stand before a scheme or a checkpoint fills them.

    With `values` there is one between the factors for each direction, all 0, so that none acts yet. Raises UsageError
    where the plan is not one rank, from 1 to the smaller side, for every target.
    """
    _check(targets, plan)
    active = 0 if values else None
    return Structure(
        {
            target.name: LayerForm("delta", rank=plan[target.name], scaling=scaling, dora=use_dora, active=active)
            for target in targets
        }
    )


def trained_in_full(net: nn.Module) -> Structure:
    """The structure of a model whose every weight trains."""
    return Structure({name: LayerForm("full") for name, module in net.named_modules() if _own(module)})


def build(net: nn.Module, structure: Structure, dropout: float = 0.0) -> Any:
    """Give a frozen base its structure, in place: what trains in full trains, and pairs are wrapped around the others.

    Returns the PeftModel around it where there are pairs. Their factors are float32 and random until `initialise` or a
    checkpoint fills them, and brings their offsets; layers that have switched stay empty until one fills them. The
    global random state is left as it was: what a run draws later
    must not depend on how many adapters it has.
    """
    modules = dict(net.named_modules())
    absent = next((name for name in structure.layers if name not in modules), None)
    assert absent is None, f"the structure of another model: {absent}"
    net.requires_grad_(False)
    if structure.kept:
        install_osf(net, structure.kept)
    for name in structure.layers.keys() - structure.pairs.keys() - structure.kept.keys():
        for parameter in _own(modules[name]):
            parameter.requires_grad_(True)
    for name, form in structure.switched.items():
        install(net, name, form)
    if not structure.pairs:
        return net
    (scaling,) = {layer.scaling for layer in structure.pairs.values()}  # one for all: they are planned so
    assert scaling is not None, "a pair without a scaling"
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        target_modules="|".join(map(re.escape, structure.pairs)),  # peft takes a full match
        lora_dropout=dropout,
        use_dora=any(layer.dora for layer in structure.pairs.values()),
        bias="none",
        init_lora_weights=True,
        fan_in_fan_out=all(isinstance(modules[name], Conv1D) for name in structure.pairs),
        **rank_settings({name: structure.ranks[name] for name in structure.pairs}, scaling),
    )
    config._register_custom_module({nn.Linear: LowRankLinear, Conv1D: LowRankLinear})
    with torch.random.fork_rng(devices=[]):
        model = get_peft_model(net, config, adapter_name=ADAPTER)
    for name, layer in adapted_layers(model).items():
        if structure.layers[name].active is not None:
            layer.add_values()
    return model


def reshape(net: nn.Module, structure: Structure) -> None:
    """Give the layers that switch the forms of a structure, in place, empty where the form is another than now."""
    live = switched_layers(net)
    for name in live.keys() - structure.switched.keys():
        install_full(net, name)
    for name, form in structure.switched.items():
        if name in live and live[name].form != form:
            install_full(net, name)
        if name not in live or live[name].form != form:
            install(net, name, form)


def _own(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


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
