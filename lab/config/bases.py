"""What is known of a base before it is loaded: the learning rates it likes, and the text on which it can forget."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from lab.config.validate import DEFAULTS
from lab.paths import CONF


@dataclass(frozen=True)
class Base:
    """What is known of one base, or of a kind of them."""

    lr: float  # AdamW's, of plain LoRA at ANCHORED
    lr_from: str
    retention: str | None = None  # what `data.retention=auto` is
    full: float = 0.1  # the rate of method=full over LoRA's
    inits: Mapping[str, float] = field(default_factory=dict)  # LoRA's of other starts, by their options of conf/init


ANCHORED: Mapping[str, Any] = {"alpha": 32.0, "scaling": "alpha_over_r"}  # what the rates are of
INITS = CONF / "init"
START = ("_target_", "source", "which", "size", "magnitude", "direction")  # settings of an init that its rate is of
UNKNOWN = Base(lr=1e-3, lr_from="the lab's rate where it knows nothing of the base", full=1.0)  # such as from scratch
PRETRAINED = Base(3e-4, "pretrained models of 1B to 550B: 126 sweeps of thinking-machines-lab/tinker-cookbook")
BASES: Mapping[str, Base] = {  # by model.name_or_path
    "lab:base": Base(1e-3, "the lab's rate on the shipped base", retention="stdlib_docs"),
    # 60 steps of 8 sums, rank 16, quarters of a decade round the best (docs/log.md, 2026-11-27): lowest at
    # 1e-3 on one seed (0.588 nats; 0.628 a quarter below, 0.598 above), at 1.78e-3 on another (0.588; 0.617 at 1e-3).
    # The other starts there, as docs/studies/init_comparison_smollm2 chose: at 1e-3 pissa's loss is 0.64 nats higher.
    "lab:smollm2_135m": Base(
        1e-3,
        "SmolLM2-135M swept by quarters of a decade, 60 steps of sums",
        inits={"svd": 3.45e-4, "pissa": 1.69e-4, "milora": 5.96e-4},
    ),
}


def of(plain: Mapping[str, Any]) -> Base:
    """What is known of a plain config's base: by its name, else as of any pretrained model, else nothing."""
    name = plain["model"].get("name_or_path") if isinstance(plain["model"], Mapping) else None
    return UNKNOWN if name is None else BASES.get(name, PRETRAINED)


def resolve(plain: dict[str, Any]) -> None:
    """Give a plain config what it leaves to its base: `optim.lr: null` and `data.retention: auto`."""
    base, optim, data = of(plain), plain["optim"], plain["data"]
    if optim["lr"] is None:
        optim["lr"], optim["lr_from"] = _rate(base, plain)
    if isinstance(data, dict) and data.get("retention") == "auto":
        data["retention"] = base.retention


def _rate(base: Base, plain: Mapping[str, Any]) -> tuple[float, str]:
    """The rate of a config that names none, and where it is from, with what the run has otherwise."""
    if plain["method"] == "full":
        times = "" if base.full == 1 else f", times {base.full:g} for method=full"
        return float(f"{base.lr * base.full:.3g}"), base.lr_from + times
    others = [f"{key}={plain[key]:g}" if key == "alpha" else f"{key}={plain[key]}" for key in departures(plain)]
    beside = f", at alpha 32 over the rank; this run has {' and '.join(others)}" if others else ""
    init = plain["init"]
    if init == DEFAULTS["init"] or base is UNKNOWN:
        return base.lr, base.lr_from + beside
    for name, rate in base.inits.items():
        option = yaml.safe_load((INITS / f"{name}.yaml").read_text(encoding="utf-8"))
        if all(init.get(key) == option.get(key) for key in START) and init.get("offset") != "none":
            return rate, f"{base.lr_from}, init={name}{beside}"
    return base.lr, f"{base.lr_from}{beside}; that is plain LoRA's, and this init may like another (lab.suggest lr)"


def plain_rate(plain: Mapping[str, Any]) -> float:
    """The rate of a config whose pairs are filled as plain LoRA's: its own where it names one."""
    optim = plain["optim"]
    return float(optim["lr"] if optim["lr_from"] is None else _rate(of(plain), {**plain, "init": DEFAULTS["init"]})[0])


def departures(plain: Mapping[str, Any]) -> list[str]:
    """The keys of ANCHORED in which a config differs from it."""
    return [key for key, value in ANCHORED.items() if plain[key] != value]
