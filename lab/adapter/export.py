"""A plain LoRA folder that stock peft loads on the pristine base, and the check that it is one."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, TaskType
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor

from lab import heartbeat
from lab.adapter.delta import pair, trained_base, truncate
from lab.adapter.install import rank_settings
from lab.adapter.layer import ADAPTER, adapted_layers
from lab.adapter.mismatch import Mismatch
from lab.cache import share_weights, write_atomically
from lab.errors import UsageError
from lab.rank_strategy import RankPlan

WEIGHTS = "adapter_model.safetensors"
BASE = "base"  # folder inside an adapter's that holds the base it was trained on, where that is not the pristine one
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    directory: Path
    # As saved: twice the trained rank with an offset, at most `rank` where that was asked; without what AdaLoRA cut.
    ranks: dict[str, int]
    scaling: float
    dropped_energy: dict[str, float]  # share of each module's ‖ΔW‖²_F that truncation left out
    total_dropped_energy: float  # share of Σ ‖ΔW‖²_F over all modules
    bases_replaced: int  # modules whose change is against another weight than the pristine base's


@torch.no_grad()
def export(
    model: PeftModel, directory: Path | str, *, rank: int | None = None, base_model: str | None = None
) -> Exported:
    """Write adapter_config.json and adapter_model.safetensors; the base with them gives the model's own logits.

    With an offset the folder holds [A; A₀] and [B, −B₀], rank 2r, scaling unchanged. `rank` cuts each module to at
    most that many directions, the best ones, and the result states the energy dropped. `base_model` overrides the
    name of the base that the config gives. Where a scheme replaced weights (LoftQ) the adapter belongs on that base,
    so it is saved beside, in `directory/base`; `bases_replaced` counts those weights. Raises UsageError for a rank
    below 1, or any with DoRA.
    """
    layers = adapted_layers(model)
    use_dora = any(layer.magnitude is not None for layer in layers.values())
    if rank is not None and rank < 1:
        raise UsageError(f"--rank {rank} leaves nothing to export; choose 1 or more.")
    if rank is not None and use_dora:
        raise UsageError("--rank cuts a plain low-rank change, and DoRA's has full rank; export without --rank.")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    energy, dropped = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    for name, layer in layers.items():
        heartbeat.beat()
        A, B = pair(layer)
        if A.shape[0] == 0:
            continue  # AdaLoRA cut all of it: peft has no rank 0, and a layer it does not adapt is the base's
        if rank is not None:
            best = truncate(layer.s * B, A, rank)
            energy[name], dropped[name] = best.energy, best.dropped
            if rank < A.shape[0]:  # else the pair stays as it is, exactly
                A, B = best.R, best.L / layer.s
        ranks[name] = A.shape[0]
        tensors[f"{PREFIX}{name}.lora_A.weight"] = A
        tensors[f"{PREFIX}{name}.lora_B.weight"] = B
        if layer.magnitude is not None:
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = layer.magnitude.detach()
    if not ranks:
        raise UsageError("every layer's change is 0 after AdaLoRA's cuts, so there is no adapter to export; train on.")
    live = cast(LoraConfig, model.peft_config[ADAPTER])
    scaling = next(iter(layers.values())).s
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base_model or live.base_model_name_or_path,
        revision=live.revision,
        lora_dropout=live.lora_dropout,
        use_dora=use_dora,
        use_rslora=False,
        bias="none",
        init_lora_weights=True,
        fan_in_fan_out=live.fan_in_fan_out,
        inference_mode=True,
        **rank_settings(ranks, scaling),
    )
    config.target_modules = _targets(model, ranks)  # set afterwards: the constructor makes a set, which has no order
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    plain = {key: t.float().cpu().contiguous() for key, t in tensors.items()}
    write_atomically(directory / WEIGHTS, lambda temporary: save_file(plain, temporary, metadata={"format": "pt"}))
    config.save_pretrained(str(directory))
    replaced = sum(layer.base_replaced for layer in layers.values())
    if replaced:
        trained_base(model).save_pretrained(directory / BASE)
        share_weights(directory / BASE)
    total = sum(energy.values())
    return Exported(
        directory=directory,
        ranks=ranks,
        scaling=scaling,
        dropped_energy={name: dropped[name] / energy[name] if energy[name] else 0.0 for name in layers},
        total_dropped_energy=sum(dropped.values()) / total if total else 0.0,
        bases_replaced=replaced,
    )


def verify_export(
    directory: Path | str,
    plan: RankPlan,
    *,
    scaling: float,
    offset: str,
    rank: int | None = None,
    use_dora: bool = False,
) -> None:
    """Read the folder back as stock peft would; raises Mismatch where it is not what was planned.

    Each module's saved rank is its planned one, or twice it where `offset` (as in Applied) is separate or fold, and at
    most `rank`; its scaling is `scaling`; every tensor is there, float32 and finite, and there are no others.
    """
    directory = Path(directory)
    config = LoraConfig.from_pretrained(str(directory))
    assert isinstance(config, LoraConfig), "not the config of a LoRA adapter"
    for what, asked, found in (
        ("use_rslora", False, config.use_rslora),
        ("use_dora", use_dora, config.use_dora),
        ("init_lora_weights", True, config.init_lora_weights),
    ):
        if asked != found:
            raise Mismatch(f"{directory}/adapter_config.json: {what} is {found}, asked {asked}.")
    tensors = load_file(directory / WEIGHTS)
    leaves = ["lora_A.weight", "lora_B.weight", *(["lora_magnitude_vector"] if use_dora else [])]
    wanted = {f"{PREFIX}{name}.{leaf}" for name in plan for leaf in leaves}
    if wanted != tensors.keys():
        missing, extra = sorted(wanted - tensors.keys()), sorted(tensors.keys() - wanted)
        raise Mismatch(f"{directory}/{WEIGHTS} lacks {missing[:3] or 'nothing'} and adds {extra[:3] or 'nothing'}.")
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise Mismatch(f"{directory}/{WEIGHTS}: {key} is {tensor.dtype} or holds values that are not finite.")
    for name, planned in plan.items():
        possible = [min(k, rank or k) for k in _saved_ranks(planned, offset)]
        A, B = tensors[f"{PREFIX}{name}.lora_A.weight"], tensors[f"{PREFIX}{name}.lora_B.weight"]
        stated = _resolve(config.rank_pattern, name, config.r)
        for what, saved in (("the rank of A", A.shape[0]), ("the rank of B", B.shape[1]), ("the stated rank", stated)):
            if saved not in possible:
                raise Mismatch(f"{name}: {what} in {directory} is {saved}, asked {' or '.join(map(str, possible))}.")
        if not stated == A.shape[0] == B.shape[1]:
            raise Mismatch(f"{name}: {directory} states rank {stated} and holds {A.shape[0]} and {B.shape[1]}.")
        alpha = _resolve(config.alpha_pattern, name, config.lora_alpha)
        if not math.isclose(alpha / stated, scaling, rel_tol=1e-9):
            raise Mismatch(f"{name}: the scaling in {directory} is {alpha / stated}, asked {scaling}.")


def _saved_ranks(planned: int, offset: str) -> Iterator[int]:
    """The ranks a module may be saved at; a scheme that mixes kinds of offset leaves two."""
    kinds = set(offset.split("+"))
    if "none" in kinds:
        yield planned
    if kinds - {"none"}:
        yield 2 * planned


def _resolve(patterns: dict[str, float] | None, name: str, default: float) -> float:
    """peft's own rule for the value that holds at a module."""
    return (patterns or {}).get(get_pattern_key(list(patterns or {}), name), default)


def _targets(model: PeftModel, ranks: Mapping[str, int]) -> list[str] | str:
    """The shortest target_modules that names these modules and no other: last parts, full names, or an expression."""
    inside = tuple(f"{name}." for name in ranks)
    every = [name for name, _ in model.get_base_model().named_modules() if not name.startswith(inside)]
    for chosen in (sorted({name.rsplit(".", 1)[-1] for name in ranks}), sorted(ranks)):
        endings = tuple(f".{part}" for part in chosen)
        if {name for name in every if name in chosen or name.endswith(endings)} == ranks.keys():
            return chosen
    return "|".join(re.escape(name) for name in ranks)
