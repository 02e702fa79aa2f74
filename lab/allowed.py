"""Which values a configuration may have, and the sentence that answers each other one. No torch here."""

import math
from collections.abc import Iterator
from typing import Any

from lab.errors import nearest
from lab.incompatible import INCOMPATIBLE

CHOICES = {
    "method": ("lora", "full"),
    "scaling": ("alpha_over_r", "rslora", "constant"),
    "select": ("last", "best"),
    "study_size": ("quick", "default", "full"),
    "schedule.lr_scheduler": ("linear", "cosine", "constant", "warmdown"),
    "hardware.accelerator": ("auto", "cpu", "gpu"),
    "hardware.precision": ("auto", "32-true", "bf16-mixed", "bf16-true"),
}
AT_LEAST = {
    "rank": 1,
    "schedule.batch_size": 1,
    "schedule.warmup_steps": 0,
    "schedule.eval_every_n_steps": 1,
    "schedule.log_every_n_steps": 1,
    "schedule.save_every_n_steps": 1,
    "hardware.devices": 1,
    "evidence.num_examples": 1,
    "evaluate.num_samples": 0,
    "evaluate.sample_tokens": 1,
    "evaluate.max_new_tokens": 1,
    "optim.momentum_warmup_steps": 0,
    "optim.weight_decay": 0,
    "optim.max_grad_norm": 0,  # 0: no clipping
    "seed": 0,
    "data_seed": 0,
}
ABOVE_ZERO = ("alpha", "optim.lr", "optim.eps", "optim.lora_plus_ratio")


def problems(plain: dict[str, Any]) -> list[str]:
    """A sentence for each value, or pair of them, that a run could not use; missing ones alone where there are any."""
    missing = [f"{key} has no value; give it one: {key}=…" for key in _missing(plain)]
    if missing:
        return missing
    found = []
    for key, allowed in CHOICES.items():
        value = _get(plain, key)
        if value not in allowed:
            found.append(f"{key}={value} is not one of {', '.join(allowed)}{nearest(str(value), list(allowed))}.")
    for key, least in AT_LEAST.items():
        value = _get(plain, key)
        if not value >= least:
            found.append(f"{key} must be at least {least}; got {value}.")
    for key in ABOVE_ZERO:
        value = _get(plain, key)
        if not 0 < value < math.inf:
            found.append(f"{key} must be above 0{' and finite' if value > 0 else ''}; got {value}.")
    for key in (
        *("hardware.micro_batch_size", "hardware.threads", "schedule.max_epochs", "schedule.max_steps"),
        *("evaluate.max_examples", "optim.lr_width"),
    ):
        value = _get(plain, key)
        if value is not None and value < 1:
            found.append(f"{key} must be at least 1 (or null); got {value}.")
    timeout = _get(plain, "hardware.timeout_s")
    if timeout is not None and not 0 < timeout < math.inf:
        found.append(f"hardware.timeout_s must be above 0 and finite, in seconds (null: never); got {timeout}.")
    betas = plain["optim"]["betas"]
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        found.append(f"optim.betas must be two numbers from 0 to below 1, such as [0.9, 0.999]; got {betas}.")
    if not 0 <= plain["adapter"]["dropout"] < 1:
        found.append(f"adapter.dropout is a probability below 1; got {plain['adapter']['dropout']}.")
    for key in ("adapter.target_modules", "adapter.exclude_modules"):
        value = _get(plain, key)
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            continue
        if value is not None and not isinstance(value, str):
            found.append(
                f"{key}={value} is neither a regular expression nor a list of names, such as [q_proj, v_proj]."
            )
    if plain["schedule"]["max_epochs"] is None and plain["schedule"]["max_steps"] is None:
        found.append("schedule.max_epochs and schedule.max_steps are both null; give the run an end.")
    if plain["method"] == "lora" and plain["optim"]["matrix_lr"] is not None:
        found.append("optim=muon is for method=full: orthogonalising a LoRA factor's update is not Muon on the weight.")
    found += _batch_problems(plain)
    for pair, reason in INCOMPATIBLE:
        if all(_get(plain, key) == value for key, value in pair.items()):
            found.append(f"{' with '.join(f'{k}={v}' for k, v in pair.items())} is refused: {reason}.")
    return found


def _missing(plain: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Keys whose value a YAML leaves to the user (`???`), dotted."""
    for key, value in plain.items():
        if value == "???":
            yield prefix + key
        elif isinstance(value, dict):
            yield from _missing(value, f"{prefix}{key}.")


def _batch_problems(plain: dict[str, Any]) -> list[str]:
    batch, devices = plain["schedule"]["batch_size"], plain["hardware"]["devices"]
    micro = plain["hardware"]["micro_batch_size"]
    if batch < 1 or devices < 1:
        return []
    unit = devices * (micro or 1)
    if batch % unit == 0:
        return []
    below, above = batch // unit * unit, (batch // unit + 1) * unit
    near = " or ".join(str(value) for value in (below, above) if value > 0)
    what = f"devices={devices}" + (f" x micro_batch_size={micro}" if micro else "")
    return [
        f"schedule.batch_size={batch} does not divide into hardware.{what}: accumulation must be whole. "
        f"The nearest batch sizes are {near}; or change hardware.micro_batch_size."
    ]


def _get(plain: dict[str, Any], key: str) -> Any:
    value: Any = plain
    for part in key.split("."):
        value = value[part]
    return value
