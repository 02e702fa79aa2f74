"""What is known of a base before it is loaded: the learning rates it likes, and the text on which it can forget."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Base:
    """What is known of one base, or of a kind of them."""

    lr: float  # AdamW's, of plain LoRA at ANCHORED
    lr_from: str
    retention: str | None = None  # what `data.retention=auto` is
    full: float = 0.1  # the rate of method=full over LoRA's


ANCHORED: Mapping[str, Any] = {"alpha": 32.0, "scaling": "alpha_over_r"}  # what the rates are of
UNKNOWN = Base(lr=1e-3, lr_from="the lab's rate where it knows nothing of the base", full=1.0)  # such as from scratch
PRETRAINED = Base(3e-4, "pretrained models of 1B to 550B: 126 sweeps of thinking-machines-lab/tinker-cookbook")
BASES: Mapping[str, Base] = {  # by model.name_or_path
    "lab:base": Base(1e-3, "the lab's rate on the shipped base", retention="stdlib_docs"),
    # 60 steps of 8 sums, rank 16, quarters of a decade round the best (docs/log.md, 2026-11-27): lowest at
    # 1e-3 on one seed (0.588 nats; 0.628 a quarter below, 0.598 above), at 1.78e-3 on another (0.588; 0.617 at 1e-3).
    "lab:smollm2_135m": Base(1e-3, "SmolLM2-135M swept by quarters of a decade, 60 steps of sums"),
}


def of(plain: Mapping[str, Any]) -> Base:
    """What is known of a plain config's base: by its name, else as of any pretrained model, else nothing."""
    name = plain["model"].get("name_or_path") if isinstance(plain["model"], Mapping) else None
    return UNKNOWN if name is None else BASES.get(name, PRETRAINED)


def resolve(plain: dict[str, Any]) -> None:
    """Give a plain config what it leaves to its base: `optim.lr: null` and `data.retention: auto`."""
    base, optim, data = of(plain), plain["optim"], plain["data"]
    if optim["lr"] is None:
        factor = base.full if plain["method"] == "full" else 1.0
        optim["lr"], optim["lr_from"] = float(f"{base.lr * factor:.3g}"), base.lr_from + _beside(plain, factor)
    if isinstance(data, dict) and data.get("retention") == "auto":
        data["retention"] = base.retention


def _beside(plain: Mapping[str, Any], factor: float) -> str:
    """In what a run differs from those that its rate was found on."""
    if plain["method"] == "full":
        return "" if factor == 1 else f", times {factor:g} for method=full"
    others = [f"{key}={plain[key]:g}" if key == "alpha" else f"{key}={plain[key]}" for key in departures(plain)]
    return f", at alpha 32 over the rank; this run has {' and '.join(others)}" if others else ""


def departures(plain: Mapping[str, Any]) -> list[str]:
    """The keys of ANCHORED in which a config differs from it."""
    return [key for key, value in ANCHORED.items() if plain[key] != value]
