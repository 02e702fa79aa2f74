"""Values that a configuration may have, alone and together, and the sentence that answers each other one.

No torch here: a class is imported to ask what it refuses beside it only where all else is allowed and it could refuse.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lab.config.instantiate import locate
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
    *("evaluate.max_examples", "optim.lr_width", "study_budget"),
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
ABOVE_ZERO_OR_NULL = (
    "evaluate.forgetting_at",
    "hardware.timeout_s",
    "optim.matrix_lr",
    "optim.embedding_lr",
    "optim.head_lr",
)
BELOW_ONE = ("optim.momentum", "optim.momentum_start", "adapter.dropout")  # and at least 0
DEFAULTS: dict[str, dict[str, Any]] = {  # by group: the option that stands for none
    "init": {"_target_": "lab.init.random.Random", "distribution": "kaiming", "filled": "A", "gain": 1.0},
    "rank_strategy": {"_target_": "lab.rank_strategy.uniform.Uniform"},
}
# A key, its value that a choice refuses beside it (`other`: any init or rank strategy but the default), and the reason.
Conflict = tuple[str, object, str]
FULL: tuple[Conflict, ...] = (
    ("adapter.use_dora", True, "adapter.use_dora decomposes an adapter, and method=full has none"),
    (
        "init",
        "other",
        "method=full trains every weight and fills no adapter, so this init would do nothing; use method=lora, or "
        "init=random",
    ),
    ("rank_strategy", "other", "method=full has no ranks to spread; use method=lora, or rank_strategy=uniform"),
)
MOVES = (
    "DoRA rescales the whole weight, so it starts from B A = 0, and this init's product is not zero; "
    "use init=random, gaussian, init_b, orthogonal or eva"
)
OF_CLASSES = ("model", "data", "init", "rank_strategy", "svd_policy", "logger", "metrics")  # their classes check them


def problems(plain: dict[str, Any]) -> list[str]:
    """A sentence for each value, or pair of them, that a run could not use; missing ones alone where there are any."""
    missing = [f"{key} has no value; give it one: {key}=…" for key in _missing(plain)]
    if missing:
        return missing
    named = {key: plain[key] for key in OF_CLASSES if not isinstance(plain[key], Mapping)}
    if named:  # as a YAML file without its defaults list gives it
        return [
            f"{key}: {value} is a name where its values belong; in a file's defaults list write "
            f"'- override /{key}: {value}', on the command line {key}={value}."
            for key, value in named.items()
        ]
    wrong = [
        f"{key} is empty text, which is no path; give one, or null where there shall be none." for key in empty(plain)
    ]
    for key, allowed in CHOICES.items():
        value = _get(plain, key)
        if value not in allowed:
            wrong.append(f"{key}={value} is not one of {', '.join(allowed)}{nearest(str(value), list(allowed))}.")
    ours = {key: value for key, value in plain.items() if key not in OF_CLASSES}
    for key, value in _numbers(ours):
        fault = _fault(key, value)
        if fault and not (key == "data_seed" and value == plain["seed"]):  # it follows seed, of which it is said
            wrong.append(f"{key} must be {fault}; got {value}.")
    betas = plain["optim"]["betas"]
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        wrong.append(f"optim.betas must be two numbers from 0 to below 1, such as [0.9, 0.999]; got {betas}.")
    prompts = plain["evaluate"]["prompts"]
    if not all(isinstance(prompt, str) for prompt in prompts):
        wrong.append(f"evaluate.prompts={prompts} is no list of texts; write ['What is rank?', …].")
    if plain["evaluate"]["forgetting_at"] is not None and not plain["evaluate"]["forgetting_curve"]:
        at = plain["evaluate"]["forgetting_at"]
        wrong.append(f"evaluate.forgetting_at={at} is read off a curve; give evaluate.forgetting_curve=true, or null.")
    if plain["evaluate"]["forgetting_curve"] and plain["data"].get("retention") is None:
        wrong.append("evaluate.forgetting_curve=True has no text to measure on; name one with data.retention.")
    for key in ("adapter.target_modules", "adapter.exclude_modules"):
        value = _get(plain, key)
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            continue
        if not isinstance(value, str) and (value is not None or key == "adapter.target_modules"):
            wrong.append(
                f"{key}={value} is neither a regular expression nor a list of names, such as [q_proj, v_proj]."
            )
    if plain["schedule"]["max_epochs"] is None and plain["schedule"]["max_steps"] is None:
        wrong.append("schedule.max_epochs and schedule.max_steps are both null; give the run an end.")
    if plain["method"] == "lora" and plain["optim"]["matrix_lr"] is not None:
        wrong.append("optim=muon is for method=full: orthogonalising a LoRA factor's update is not Muon on the weight.")
    wrong += _batch_faults(plain)
    if plain["method"] == "full":
        wrong += _conflicts("method=full", FULL, plain)
    return wrong or list(_class_conflicts(plain))


def _conflicts(choice: str, conflicts: Iterable[Conflict], plain: dict[str, Any]) -> Iterator[str]:
    """A sentence for each value that a choice, named as the user could write it, refuses beside it."""
    for key, refused, reason in conflicts:
        value = _get(plain, key)
        others = _departures(key, value) if refused == "other" and key in DEFAULTS else []
        for other in others or [f"{key}={value}"] * (value == refused):
            yield f"{choice} with {other} is refused: {reason}."


def _departures(group: str, node: dict[str, Any]) -> list[str]:
    """The class that makes an option another than its group's default, or else the values that do."""
    target, default = f"{group}._target_={node.get('_target_')}", DEFAULTS[group]
    if node.get("_target_") != default["_target_"]:
        return [target]
    return [
        f"{target} with {group}.{key}={node[key]}" for key, value in default.items() if node.get(key, value) != value
    ]


def _class_conflicts(plain: dict[str, Any]) -> Iterator[str]:
    """A sentence for each value that the class of the init or of the rank strategy refuses beside it.

    The lab's inits refuse nothing but DoRA, where they move the function; so most configs are told without torch.
    """
    targets = {group: str(plain[group].get("_target_")) for group in DEFAULTS}
    dora = plain["adapter"]["use_dora"]
    own = not targets["init"].startswith("lab.")
    if not dora and not own and targets["rank_strategy"] == DEFAULTS["rank_strategy"]["_target_"]:
        return
    for group, target in targets.items():
        try:
            chosen, choice = locate(target), f"{group}._target_={target}"
        except ImportError:  # said in a sentence where the object is made
            continue
        if dora and group == "init" and getattr(chosen, "starts_at_zero", None) is False:
            yield f"adapter.use_dora=True with {choice} is refused: {MOVES}."
        yield from _conflicts(choice, getattr(chosen, "conflicts", ()), plain)


def _numbers(plain: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """Every whole number and float of a plain config, under its dotted key."""
    for key, value in plain.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + key, value


def _fault(key: str, value: int | float) -> str | None:
    """The condition that the value of a key does not meet, in words; None where it meets all."""
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


def _batch_faults(plain: dict[str, Any]) -> list[str]:
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
    """The value of a dotted key; None where there is none, such as an option that another class has."""
    value: Any = plain
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
