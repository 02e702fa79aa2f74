"""Which values a configuration may have, and the sentence that answers each other one. No torch here."""

import math
from collections.abc import Iterator
from typing import Any

from lab.config.incompatible import INCOMPATIBLE
from lab.errors import nearest
from lab.paths import empty

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
    "hardware.num_workers": 0,
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
AT_LEAST_1_OR_NULL = (
    *("hardware.micro_batch_size", "hardware.threads", "schedule.max_epochs", "schedule.max_steps"),
    *("evaluate.max_examples", "optim.lr_width"),
)
MOST = 2**31 - 1  # of any whole number without a limit of its own: beyond, a library somewhere counts in 32 bits
AT_MOST = {
    "seed": 2**32 - 1,  # numpy's generator takes no more
    "data_seed": 2**32 - 1,
    "schedule.batch_size": 2**20,  # examples; each micro-batch of a step takes its time, an empty one too
    "hardware.devices": 1024,  # processes and threads that no machine has crash it before a library can say so
    "hardware.threads": 1024,
    "hardware.num_workers": 1024,
}
ABOVE_ZERO = ("alpha", "optim.lr", "optim.eps", "optim.lora_plus_ratio")
ABOVE_ZERO_OR_NULL = ("hardware.timeout_s", "optim.matrix_lr", "optim.embedding_lr", "optim.head_lr")
BELOW_ONE = ("optim.momentum", "optim.momentum_start", "adapter.dropout")  # and at least 0
OF_CLASSES = ("model", "data", "init", "rank_strategy", "svd_policy", "logger", "metrics")  # their classes check them


def problems(plain: dict[str, Any]) -> list[str]:
    """A sentence for each value, or pair of them, that a run could not use; missing ones alone where there are any."""
    missing = [f"{key} has no value; give it one: {key}=…" for key in _missing(plain)]
    if missing:
        return missing
    found = [
        f"{key} is empty text, which is no path; give one, or null where there shall be none." for key in empty(plain)
    ]
    for key, allowed in CHOICES.items():
        value = _get(plain, key)
        if value not in allowed:
            found.append(f"{key}={value} is not one of {', '.join(allowed)}{nearest(str(value), list(allowed))}.")
    typed = {key: value for key, value in plain.items() if key not in OF_CLASSES}
    for key, value in _numbers(typed):
        fault = _fault(key, value)
        if fault and not (key == "data_seed" and value == plain["seed"]):  # it follows seed, of which it is said
            found.append(f"{key} must be {fault}; got {value}.")
    betas = plain["optim"]["betas"]
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        found.append(f"optim.betas must be two numbers from 0 to below 1, such as [0.9, 0.999]; got {betas}.")
    prompts = plain["evaluate"]["prompts"]
    if not all(isinstance(prompt, str) for prompt in prompts):
        found.append(f"evaluate.prompts={prompts} is no list of texts; write ['What is rank?', …].")
    for key in ("adapter.target_modules", "adapter.exclude_modules"):
        value = _get(plain, key)
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            continue
        if not isinstance(value, str) and (value is not None or key == "adapter.target_modules"):
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


def _numbers(plain: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """Every whole number and float of a plain config, under its dotted key."""
    for key, value in plain.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + key, value


def _fault(key: str, value: int | float) -> str | None:
    """What the value of a key must be and is not; None where it is."""
    least = 1 if key in AT_LEAST_1_OR_NULL else AT_LEAST.get(key)
    if least is not None and not value >= least:
        return f"at least {least}{' (or null)' if key in AT_LEAST_1_OR_NULL else ''}"
    if key in (*ABOVE_ZERO, *ABOVE_ZERO_OR_NULL) and not 0 < value < math.inf:
        return f"above 0{' and finite' if value > 0 else ''}{' (or null)' if key in ABOVE_ZERO_OR_NULL else ''}"
    if key in BELOW_ONE and not 0 <= value < 1:
        return "at least 0 and below 1"
    if isinstance(value, float):
        return None if math.isfinite(value) else "finite"
    most = AT_MOST.get(key, MOST)
    return None if value <= most else f"at most {most}"


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
    if min(batch, devices, 1 if micro is None else micro) < 1:
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
