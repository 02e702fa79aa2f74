"""A plain LoRA folder that stock peft loads on the pristine base, and the check that it is one."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, TaskType
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from lab.adapter.build import rank_settings
from lab.adapter.delta import Truncated, pair, trained_base, truncate
from lab.adapter.layer import ADAPTER, LowRankLinear, adapted_layers
from lab.adapter.readers import NOT_CUT, NOT_PORTABLE
from lab.errors import Mismatch, UsageError
from lab.files import share_weights, write_atomically
from lab.model.stored import weight_files
from lab.process import heartbeat
from lab.structure import Structure

WEIGHTS = "adapter_model.safetensors"
BASE = "base"  # folder inside an adapter's that holds the base it was trained on, where that is not the pristine one
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    directory: Path
    # As saved: twice the trained rank with an offset, at most `rank` where that was asked; without what was cut.
    ranks: dict[str, int]
    scaling: float
    dropped_energy: dict[str, float]  # share of each module's ‖ΔW‖²_F that truncation left out
    total_dropped_energy: float  # share of Σ ‖ΔW‖²_F over all modules
    bases_replaced: int  # modules whose change is against another weight than the pristine base's


@torch.no_grad()
def export(
    model: PeftModel,
    directory: Path | str,
    *,
    rank: int | None = None,
    portable: bool = False,
    base_model: str | None = None,
    revision: str | None = None,
    beside: PreTrainedModel | None = None,
    home: Path | None = None,
) -> Exported:
    """Write adapter_config.json and adapter_model.safetensors; the base with them gives the model's own logits.

    With an offset the folder holds [A; A₀] and [B, −B₀], rank 2r, scaling unchanged. `rank` cuts each module to at
    most that many directions, the best ones, and the result states the energy dropped. `portable` pads every pair with
    zeros to the largest rank, so that one rank and one alpha hold everywhere, for readers that know no patterns.

    The config names the base `base_model`, by default where it was loaded from, at `revision`. `beside` is a base to
    save in `directory/base` and to name instead; where a scheme replaced weights (LoftQ) and none is given, the run's
    own is. It is named by its absolute path, under `home` where the folder is to be moved there: a relative one would
    be sought in its reader's working directory. Raises UsageError for a rank below 1, for `rank` or `portable` with
    DoRA, and where nothing is left to export.
    """
    layers = adapted_layers(model)
    use_dora = any(layer.magnitude is not None for layer in layers.values())
    if rank is not None and rank < 1:
        raise UsageError(f"--rank {rank} leaves nothing to export; choose 1 or more.")
    if rank is not None and use_dora:
        raise UsageError(NOT_CUT)
    if portable and use_dora:
        raise UsageError(NOT_PORTABLE)
    pairs, cuts = _pairs(layers, rank)
    if not pairs:
        raise UsageError("every layer's change is 0, so there is no adapter to export; train on.")
    if portable:
        width = max(A.shape[0] for A, _ in pairs.values())
        pairs = {name: (_widened(A, width), _widened(B.T, width).T) for name, (A, B) in pairs.items()}
    tensors: dict[str, Tensor] = {}
    for name, (A, B) in pairs.items():
        tensors |= {f"{PREFIX}{name}.lora_A.weight": A, f"{PREFIX}{name}.lora_B.weight": B}
        if (magnitude := layers[name].magnitude) is not None:
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = magnitude.detach()
    directory = Path(directory)
    replaced = sum(layer.base_replaced for layer in layers.values())
    if replaced and beside is None:
        beside = trained_base(model)
    live = cast(LoraConfig, model.peft_config[ADAPTER])
    name = base_model or live.base_model_name_or_path
    scaling = next(iter(layers.values())).s
    ranks = {name: A.shape[0] for name, (A, _) in pairs.items()}
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=name if beside is None else str(((home or directory) / BASE).resolve()),
        revision=revision if beside is None else None,
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
    directory.mkdir(parents=True, exist_ok=True)
    plain = {key: t.float().cpu().contiguous() for key, t in tensors.items()}
    write_atomically(directory / WEIGHTS, lambda temporary: save_file(plain, temporary, metadata={"format": "pt"}))
    config.save_pretrained(str(directory))
    if beside is not None:
        beside.save_pretrained(directory / BASE)
        share_weights(directory / BASE)
    energy = sum(cut.energy for cut in cuts.values())
    return Exported(
        directory=directory,
        ranks=ranks,
        scaling=scaling,
        dropped_energy={name: _share(cuts[name]) if name in cuts else 0.0 for name in layers},
        total_dropped_energy=sum(cut.dropped for cut in cuts.values()) / energy if energy else 0.0,
        bases_replaced=replaced,
    )


def _pairs(
    layers: Mapping[str, LowRankLinear], rank: int | None
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Truncated]]:
    """A and B to save, by module, without layers that were cut to nothing; and how each was cut to `rank`."""
    pairs, cuts = {}, {}
    for name, layer in layers.items():
        heartbeat.beat()
        A, B = pair(layer)
        if A.shape[0] == 0:
            continue  # peft has no rank 0, and a layer it does not adapt is the base's
        if rank is not None:
            best = cuts[name] = truncate(layer.s * B, A, rank)
            if rank < A.shape[0]:  # else the pair stays as it is, exactly
                A, B = best.R, best.L / layer.s
        pairs[name] = A, B
    return pairs, cuts


def _share(cut: Truncated) -> float:
    return cut.dropped / cut.energy if cut.energy else 0.0


def _widened(rows: Tensor, height: int) -> Tensor:
    """Rows of zeros appended up to a height."""
    return torch.cat([rows, rows.new_zeros(height - rows.shape[0], rows.shape[1])])


def verify_export(
    directory: Path | str,
    structure: Structure,
    *,
    rank: int | None = None,
    portable: bool = False,
    base: str | None = None,
    revision: str | None = None,
    model: PeftModel | None = None,
) -> None:
    """Read the folder back as stock peft would; raises Mismatch where it is not what was planned.

    Each module's saved rank is that of its directions that act, or twice it where it has an offset, and at most `rank`;
    a module without any is left out. Its scaling is the structure's; every tensor is there, float32 and finite, and
    there are no others. Where `portable`, one rank and one alpha hold for all, and what a pair has beyond its own rank
    is 0. The base is named `base`, at `revision`; by default the one in the folder, where it holds one, and that at
    none. With the live `model` every pair that was not cut to `rank` is compared with the model's own, number by
    number.
    """
    directory = Path(directory)
    plan = {name: rank for name, rank in structure.active_ranks.items() if rank > 0}
    use_dora = any(layer.dora for layer in structure.pairs.values())
    config = LoraConfig.from_pretrained(str(directory))
    assert isinstance(config, LoraConfig), "not the config of a LoRA adapter"
    own = directory / BASE
    if base is None:
        base = str(own.resolve()) if own.is_dir() else config.base_model_name_or_path
    facts: list[tuple[str, Any, Any]] = [
        ("use_rslora", False, config.use_rslora),
        ("use_dora", use_dora, config.use_dora),
        ("init_lora_weights", True, config.init_lora_weights),
        ("base_model_name_or_path", base, config.base_model_name_or_path),
        ("revision", None if own.is_dir() else revision, config.revision),
    ]
    if portable:
        facts += [("rank_pattern", {}, config.rank_pattern), ("alpha_pattern", {}, config.alpha_pattern)]
    for what, expected, actual in facts:
        if expected != actual:
            raise Mismatch(f"{directory}/adapter_config.json: {what} is {actual}, asked {expected}.")
    if own.is_dir() and not weight_files(str(own), None):
        raise Mismatch(f"{own} is the adapter's base and holds no weights.")
    tensors = load_file(directory / WEIGHTS)
    leaves = ["lora_A.weight", "lora_B.weight", *(["lora_magnitude_vector"] if use_dora else [])]
    wanted = {f"{PREFIX}{name}.{leaf}" for name in plan for leaf in leaves}
    if wanted != tensors.keys():
        missing, extra = sorted(wanted - tensors.keys()), sorted(tensors.keys() - wanted)
        raise Mismatch(f"{directory}/{WEIGHTS} lacks {missing[:3] or 'nothing'} and adds {extra[:3] or 'nothing'}.")
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise Mismatch(f"{directory}/{WEIGHTS}: {key} is {tensor.dtype} or holds values that are not finite.")
    live = {name: pair(layer) for name, layer in adapted_layers(model).items()} if model is not None else {}
    saved_ranks = {name: k if structure.layers[name].offset == "none" else 2 * k for name, k in plan.items()}
    own_ranks = {name: min(k, rank or k) for name, k in saved_ranks.items()}
    widest = max(own_ranks.values())
    for name, own_rank in own_ranks.items():
        asked = widest if portable else own_rank
        A, B = tensors[f"{PREFIX}{name}.lora_A.weight"], tensors[f"{PREFIX}{name}.lora_B.weight"]
        stated = _resolve(config.rank_pattern, name, config.r)
        for what, saved in (("the rank of A", A.shape[0]), ("the rank of B", B.shape[1]), ("the stated rank", stated)):
            if saved != asked:
                raise Mismatch(f"{name}: {what} in {directory} is {saved}, asked {asked}.")
        if not stated == A.shape[0] == B.shape[1]:
            raise Mismatch(f"{name}: {directory} states rank {stated} and holds {A.shape[0]} and {B.shape[1]}.")
        if bool(A[own_rank:].any()) or bool(B[:, own_rank:].any()):
            raise Mismatch(f"{name}: {directory} holds more than rank {own_rank}.")
        if name in live and not _is_pair(A, B, live[name]):
            raise Mismatch(f"{name}: {directory} holds another pair than the live model's.")
        alpha = _resolve(config.alpha_pattern, name, config.lora_alpha)
        scaling = structure.scalings[name]
        if not math.isclose(alpha / stated, scaling, rel_tol=1e-9):
            raise Mismatch(f"{name}: the scaling in {directory} is {alpha / stated}, asked {scaling}.")


def _is_pair(A: Tensor, B: Tensor, live: tuple[Tensor, Tensor]) -> bool:
    """True where saved factors are the live ones, perhaps with zeros behind; those that were cut are not judged."""
    k = live[0].shape[0]
    return k > A.shape[0] or (
        torch.equal(A[:k], live[0].float().cpu()) and torch.equal(B[:, :k], live[1].float().cpu())
    )


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
