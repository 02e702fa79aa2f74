"""Summary of a run: the live model's facts in its record, its first and last lines on the console."""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.text import Text

from lab import __version__
from lab.adapter.readers import damping
from lab.config import RunConfig, for_files
from lab.instruments.rank_plan import print_plan
from lab.layer import Target
from lab.model import Model, hub
from lab.paths import PACKAGE
from lab.record import RunRecord
from lab.run.setup import Adapted
from lab.training.hardware import Resolved
from lab.training.progress import console


def fill_record(
    result: RunRecord, config: RunConfig, adapted: Adapted, model: Model, tokenizer: Any, hardware: Resolved
) -> None:
    """Fill the record with what the live model, the config and the machine are."""
    net = adapted.net
    words = int(net.get_input_embeddings().weight.shape[0])
    result.seed, result.data_seed = config.seed, config.data_seed
    result.config = for_files(config)
    result.model = {
        "name_or_path": model.name_or_path,
        "revision": model.revision,
        "weights_sha256": adapted.model.base["base_sha256"],  # as held, in `dtype`
        "stored_sha256": adapted.model.base["stored_sha256"],  # as its files have it: the same whatever the precision
        "dtype": str(next(net.parameters()).dtype).removeprefix("torch."),
        "quantization": getattr(model, "quantization", None),
        "vocab_size": words,
        "unused_ids": max(0, words - len(tokenizer)),
        "origin": hub.origin(model.name_or_path),
    }
    result.trainable_params = sum(p.numel() for p in net.parameters() if p.requires_grad)
    result.total_params = sum(p.numel() for p in net.parameters())
    if adapted.applied is not None:
        structure = adapted.applied.structure
        result.ranks, result.scalings = structure.ranks, structure.scalings
        asked = config.rank * sum(target.cost for target in adapted.targets)
        result.budget = {"asked": asked, "used": adapted.applied.budget_used}
    result.environment = environment(hardware)


def print_start(result: RunRecord, targets: Sequence[Target]) -> None:
    """What was installed and initialised, and where the loss starts."""
    if origin := result.model["origin"]:
        console.print(Text(f"base: {origin['said']}"))
    if (optim := result.config["optim"])["lr_from"] is not None:
        console.print(Text(f"optim.lr={optim['lr']:g}: {optim['lr_from']}"))
    if unused := result.model["unused_ids"]:
        console.print(
            f"vocabulary: {result.model['vocab_size']:,} words, {unused:,} of them beyond the tokenizer's ids: "
            f"no text holds those, and only the head's softmax sees them"
        )
    if result.ranks:
        init = result.init
        print_plan(result.ranks, targets)
        console.print(
            f"{init['scheme']}: {init['modules_initialised']} of {init['modules_targeted']} modules initialised, "
            f"rank {_span(result.ranks)}, scaling {_span(result.scalings)}, "
            f"{result.trainable_params:,} of {result.total_params:,} parameters train; "
            f"loss at step 0 {init['step0_loss']:.4f}, of the base {init['base_loss']:.4f}"
        )
        for line in damping(min(result.scalings.values())):
            console.print(Text(line, style="yellow"))
    accuracy = share(result.metrics, "base_test_accuracy")
    told = f", test accuracy {accuracy}" if accuracy else ""
    console.print(f"base: validation loss {result.metrics['base_val_loss']:.4f} nats per token{told}")


def print_end(result: RunRecord, run_dir: Path) -> None:
    """The last line of a run: its scores, its seconds, its folder."""
    metrics = result.metrics
    shown = ("val_loss", "val_bpb", "best_val_bpb", "base_val_loss", "test_loss", "forgetting")
    facts = [f"{name} {value:.4f}" for name in shown if (value := metrics.get(name)) is not None]
    for name in ("base_test_accuracy", "test_accuracy"):
        facts += [f"{name} {told}" for told in [share(metrics, name)] if told]
    console.print(f"{' · '.join(facts)} · {result.seconds['total']:.0f} s · {run_dir}")


def share(metrics: Mapping[str, float | None], name: str) -> str:
    """A share with its interval, such as `24.0 % (16.7 to 33.2 %)`; empty where it was not measured."""
    value, low, high = (metrics.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    if value is None or low is None or high is None:
        return ""
    return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f} %)"


def environment(resolved: Resolved) -> dict[str, Any]:
    """The `environment` field of a RunRecord."""
    versions = {}
    for name in ("lightning", "transformers", "peft", "hydra-core", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    commit = subprocess.run(
        ["git", "-C", str(PACKAGE), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "lab": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with its build, which the package's own version may lack
        **versions,
        "accelerator": resolved.accelerator,
        "device": resolved.device_name,
        "devices": resolved.devices,
        "precision": resolved.precision,
        "threads": resolved.threads,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "commit": commit or None,
    }


def _span(values: dict[str, Any]) -> str:
    low, high = min(values.values()), max(values.values())
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
