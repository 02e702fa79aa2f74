"""A run's selected weights, live: from the checkpoint that `select` names, or from what the run itself exported."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import config as configuration
from lab import record
from lab.config import RunConfig, instantiate
from lab.errors import UsageError
from lab.record import run_files

if TYPE_CHECKING:
    from lab.adapter.structured import Structured

NAMES = {"last": ("last.ckpt", "previous.ckpt"), "best": ("best.ckpt",)}  # in checkpoints/
EXPORTED = {"lora": "adapter", "full": "model"}
WHOLE = ("completed", "stopped")  # a run that a rung stopped had come to the rung's end
UNFINISHED = {
    "running": "is still running",
    "interrupted": "was interrupted",
    "diverged": "diverged",
    "failed": "failed",
    "stopped": "was stopped by a rung of its study",
}


@dataclass(frozen=True)
class Selected:
    """The weights that a run's record speaks of, on the CPU in the run's dtype."""

    weights: "Structured"
    model: Any  # where its base is from
    config: RunConfig
    step: int

    @property
    def net(self) -> Any:
        """A PeftModel where there are adapters, else the transformers model."""
        return self.weights.net


def load(run_dir: Path) -> Selected:
    """The selected weights of a run; where its study has dropped the checkpoints, as the run exported them.

    Raises UsageError where the folder is no run, its base is gone or another, or its weights are gone or broken.
    """
    before = record.read(run_dir).environment.get("precision")
    config = configuration.load_for_weights(run_dir)
    check(run_dir, config)
    model = instantiate.make(config.model)
    _check_base(run_dir, model)
    from lab.run.setup import load_base, readapt, resolve_hardware

    content = _from_checkpoint(run_dir, config) if _has_checkpoint(run_dir, config) else _from_export(run_dir, config)
    config.hardware.accelerator, config.hardware.devices = "cpu", 1
    net, targets = load_base(model, config, resolve_hardware(config, before))
    adapted = readapt(net, targets, config, content, model)
    adapted.net.eval()
    return Selected(adapted.model, model, config, int(content["progress"]["step"]))


def check(run_dir: Path, config: RunConfig) -> None:
    """Refuse a run that holds no selected weights, by how it ended; reads no more than names of files."""
    if _has_checkpoint(run_dir, config) or _exported(run_dir, config) is not None:
        return
    status, read = record.status_of(run_dir), record.read(run_dir)
    error = (read.error or {}).get("message")
    lacks = f"{run_dir} holds no checkpoints/{NAMES[config.select][0]}"
    if status == "running":
        raise UsageError(f"{lacks} yet, since it is still running; wait for its first checkpoint.")
    if status in WHOLE:
        raise UsageError(f"{lacks} and no {EXPORTED[config.method]} any more; train again.")
    because = f" ({error.rstrip('.')})" if error else ""
    when = "before its first one" if read.stage is None else "and its study keeps none"
    remedy = f"go on with python -m lab.train resume={run_dir}"
    if status == "diverged":
        remedy = "train again, with a lower optim.lr for one"
    raise UsageError(f"{lacks}: it {UNFINISHED[status]} {when}{because}; {remedy}.")


def provenance(run_dir: Path, selected: Selected) -> Iterator[str]:
    """What to know of weights that are not those a completed run's record speaks of."""
    status, result = record.status_of(run_dir), record.read(run_dir)
    if status != "completed":
        yield f"{run_dir} {UNFINISHED[status]}: these are its weights at step {selected.step}"
    elif selected.config.select == "last" and selected.step != result.steps:
        yield f"these are the weights at step {selected.step}, and the record speaks of those at step {result.steps}"


def _has_checkpoint(run_dir: Path, config: RunConfig) -> bool:
    return any(os.path.lexists(run_dir / "checkpoints" / name) for name in NAMES[config.select])


def _exported(run_dir: Path, config: RunConfig) -> Path | None:
    """The folder of the selected weights that a run exported at its end, if it is there."""
    folder = run_dir / EXPORTED[config.method]
    return folder if record.status_of(run_dir) in WHOLE and folder.is_dir() else None


def _from_checkpoint(run_dir: Path, config: RunConfig) -> dict[str, Any]:
    """The content of the selected checkpoint; of the last ones, the newest that can be read, which says so."""
    from lab.training import checkpoint

    exported = _exported(run_dir, config)
    if config.select != "best":
        try:
            newest = checkpoint.newest(run_dir)
        except UsageError as error:
            if exported is None:
                raise
            remedy = f"or remove them, and what the run exported in {exported} is taken, which is the same"
            raise UsageError(f"{str(error).rstrip('.')}, {remedy}.") from None
        assert newest is not None, "its file was there a moment ago"
        return newest[1]
    path = checkpoint.folder(run_dir) / checkpoint.BEST
    try:
        return checkpoint.load(path)
    except checkpoint.DAMAGED as error:
        remedy = f"remove it, and those in {exported} are taken, which are the same" if exported else "train again"
        raise UsageError(
            f"{path} cannot be read ({checkpoint.reason(error)}), and select=best means its weights, not those of "
            f"another step; {remedy}."
        ) from None


def _from_export(run_dir: Path, config: RunConfig) -> dict[str, Any]:
    """What a checkpoint of the selected weights would hold, from the folder that the run exported."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from lab.adapter.reread import reread

    folder, result = _exported(run_dir, config), record.read(run_dir)
    assert folder is not None, "checked before"
    for name, recorded in result.files.items():
        if name.startswith(f"{folder.name}/"):
            damaged = run_files.damage(run_dir / name, recorded, whole=True)
            if damaged is not None:
                raise UsageError(f"{damaged}, and there is no checkpoint; put a copy of it back, or train again.")
    try:
        if config.method == "full":
            state = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
        else:
            state = reread(folder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UsageError(f"{folder} cannot be read ({error}), and there is no checkpoint; train again.") from None
    structure = {
        "method": config.method,
        "base_sha256": result.model["weights_sha256"],
        "stored_sha256": result.model.get("stored_sha256"),
    }
    step = result.steps if config.select == "last" else result.metrics.get("best_step")
    return {"structure": structure, "state_dict": state, "progress": {"step": step or 0}}


def _check_base(run_dir: Path, model: Any) -> None:
    """Refuse a base that cannot be had, before anything heavy is imported."""
    check_model = getattr(model, "check", None)  # a user's own model may have none
    if check_model is None:
        return
    try:
        check_model()
    except UsageError as error:
        raise UsageError(
            f"the base of {run_dir} cannot be had: {str(error).rstrip('.')}; where it has moved, write its new place "
            f"into {run_dir / 'config.yaml'}, and its weights are compared with the run's."
        ) from None
