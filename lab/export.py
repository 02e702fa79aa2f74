"""A run's selected weights in Hugging Face formats.      python -m lab.export RUN --to DIR [--format F] [--rank R]"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import command
from lab import config as configuration
from lab.adapter.readers import NOT_CUT, NOT_PORTABLE, caveats
from lab.config import RunConfig, trust
from lab.errors import UsageError
from lab.files import new_folder, share_weights
from lab.launch.worker import quiet_not_ours
from lab.run import selected
from lab.run.selected import Selected

FORMATS = ("adapter", "portable", "merged", "factored")
STRUCTURE = "structure.json"  # of a factored export: the form of each layer that switched


def load_model(run_dir: Path) -> tuple[Any, Any]:
    """The selected weights of a run as a live model, and its tokenizer, on the CPU in the run's dtype.

    Raises UsageError where the folder is no run, its base is gone or another, or its checkpoint is gone or broken.
    """
    chosen = selected.load(run_dir)
    return chosen.net, chosen.model.tokenizer()


def export_run(run_dir: Path, to: Path, format: str, rank: int | None) -> dict[str, Any]:
    """Write the folder and return what is worth saying about it; raises UsageError for what a run cannot give.

    The folder is whole or not there.
    """
    _check_asked(run_dir, configuration.load_for_weights(run_dir), format, rank)
    _check_place(to, run_dir)
    chosen = selected.load(run_dir)
    with _refusals_of_the_disk(to), new_folder(to.resolve()) as folder:
        if format == "merged":
            account = _write_whole(chosen, folder)
        elif format == "factored":
            account = _write_factored(chosen, folder)
        else:
            account = _write_adapter(chosen, folder, to.resolve(), format == "portable", rank)
        chosen.model.tokenizer().save_pretrained(folder)
    account["notes"] = [*selected.provenance(run_dir, chosen), *account["notes"]]
    return {"to": str(to), **account}


def _write_adapter(chosen: Selected, folder: Path, to: Path, portable: bool, rank: int | None) -> dict[str, Any]:
    """The adapter and, where no name gives its base back, that too; read back as written. `to` is where it will lie."""
    from lab.adapter.delta import trained_base
    from lab.adapter.export import BASE, export, verify_export
    from lab.adapter.layer import adapted_layers
    from lab.model import hub
    from lab.model.stored import load_as_stored, weight_files

    model, layers = chosen.model, adapted_layers(chosen.net)
    drawn = not weight_files(model.name_or_path, model.revision)  # a model from scratch: no name gives it back
    beside = None
    if drawn or any(layer.base_replaced for layer in layers.values()):
        beside = trained_base(chosen.net, load_as_stored(model, chosen.config.seed))
    base = hub.resolve(model.name_or_path)
    done = export(
        chosen.net,
        folder,
        rank=rank,
        portable=portable,
        base_model=base,
        revision=model.revision,
        beside=beside,
        home=to,
    )
    if beside is not None:
        base = str(to / BASE)
        model.tokenizer().save_pretrained(folder / BASE)
    verify_export(
        folder,
        chosen.weights.structure,
        rank=rank,
        portable=portable,
        base=base,
        revision=model.revision,
        model=chosen.net,
    )
    notes = [] if beside is None else [f"it belongs on the base beside it, which adapter_config.json names as {base}"]
    if rank is not None and rank > max(done.ranks.values()):
        notes.append(f"no layer has more than rank {max(done.ranks.values())}, so --rank {rank} cut nothing")
    notes += caveats(done.ranks, done.scaling)
    return {"dropped_energy": done.total_dropped_energy, "notes": notes}


def _write_whole(chosen: Selected, folder: Path) -> dict[str, Any]:
    """The model with what it learned in its weights: in the base's own dtype, or the one in which every weight trained.

    Raises Mismatch where the files hold another dtype.
    """
    from lab.adapter.delta import merged
    from lab.adapter.switched import dense
    from lab.errors import Mismatch
    from lab.model.stored import load_as_stored, stored_dtype, weight_files

    whole = chosen.net
    if chosen.weights.structure.pairs:
        whole = merged(chosen.net, load_as_stored(chosen.model, chosen.config.seed))
    with dense(whole):
        whole.save_pretrained(folder)
    share_weights(folder)
    held = stored_dtype(weight_files(str(folder), None))
    if held != whole.dtype:
        raise Mismatch(f"{folder} holds {held}, asked {whole.dtype}.")
    return {"notes": [f"its weights are {str(held).removeprefix('torch.')}"]}


def _write_factored(chosen: Selected, folder: Path) -> dict[str, Any]:
    """The weights as the run holds them, A, B and what stands beside them by layer, and each layer's form.

    Raises UsageError where no layer is low-rank, and Mismatch where a saved factor has another rank than its form says.
    """
    import json

    from safetensors import safe_open
    from safetensors.torch import save_model

    from lab.errors import Mismatch

    forms = chosen.weights.structure.switched
    if not forms:
        raise UsageError("no layer of this run's selected weights is low-rank, so nothing is factored; use merged.")
    save_model(chosen.net, str(folder / "model.safetensors"), metadata={"format": "pt"})
    chosen.net.config.save_pretrained(folder)
    plain = {name: form for name, form in chosen.weights.structure.to_plain().items() if name in forms}
    (folder / STRUCTURE).write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    with safe_open(folder / "model.safetensors", "pt") as saved:
        for name, form in forms.items():
            held = saved.get_slice(f"{name}.A").get_shape()[0], saved.get_slice(f"{name}.B").get_shape()[1]
            if held != (form.rank, form.rank):
                raise Mismatch(f"{name}: {folder} holds factors of rank {held}, asked {form.rank}.")
    return {"notes": [f"{len(forms)} layers are factored; {STRUCTURE} says how each acts"]}


def _check_asked(run_dir: Path, config: RunConfig, format: str, rank: int | None) -> None:
    """Refuse what the config alone says this run cannot give."""
    if rank is not None and rank < 1:
        raise UsageError(f"--rank must be at least 1; got {rank}.")
    if config.method == "full" and (format not in ("merged", "factored") or rank is not None):
        raise UsageError(f"{run_dir} trained every weight (method=full), so it has no adapter; use --format merged.")
    if config.method != "full" and format == "factored":
        raise UsageError(f"{run_dir} trained adapters; --format factored is for method=full, use --format adapter.")
    if format == "merged" and rank is not None:
        raise UsageError("--rank re-truncates an adapter; with --format merged there is none.")
    if format == "merged" and config.method == "lora" and (quantised := config.model.get("quantization")):
        raise UsageError(
            f"{run_dir} trained on a quantised base (model.quantization={quantised}), which cannot take the adapter "
            f"in; put {run_dir / 'adapter'} on the unquantised base and merge it there, with peft."
        )
    if config.adapter.use_dora and rank is not None:
        raise UsageError(NOT_CUT)
    if config.adapter.use_dora and format == "portable":
        raise UsageError(NOT_PORTABLE)


def _check_place(to: Path, run_dir: Path) -> None:
    """Refuse a place for the folder where it cannot be written, or where something else lies."""
    place, run = to.resolve(), run_dir.resolve()
    if run == place or run in place.parents:
        raise UsageError(
            f"--to {to} lies in the run's own folder, which holds what the run wrote; choose another place."
        )
    if place.exists() and not place.is_dir():
        raise UsageError(f"--to {to} is a file; give a folder that does not exist yet.")
    if place.is_dir() and any(place.iterdir()):
        raise UsageError(f"{to} is not empty; choose another folder.")
    if place.is_mount():
        raise UsageError(f"--to {to} is a mount point, and the folder is written beside its place; give one inside it.")
    above = next(folder for folder in place.parents if folder.exists())
    if not above.is_dir():
        raise UsageError(f"--to {to}: {above} is a file, so there can be no folder in it; choose another place.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"--to {to}: {above} may not be written to; choose another place.")


@contextmanager
def _refusals_of_the_disk(to: Path) -> Iterator[None]:
    """A disk that refuses ends in one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"could not write {to} ({error}); nothing is left of it: free space, or choose another place."
        ) from error


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = command.Parser(prog="lab-export", description=__doc__)
    parser.add_argument("run", type=command.path, metavar="RUN", help="a run directory")
    parser.add_argument("--to", type=command.path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="adapter",
        help="adapter: for peft; portable: the same with one rank and one alpha, for llama.cpp and others; merged: a "
        "whole model in the dtype of the base's files; factored: the same with layers that switched as factors",
    )
    parser.add_argument("--rank", type=int, metavar="R", help="re-truncate each layer's change to rank R")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=command.TRUST)
    given = parser.parse_args(arguments)
    sys.path.append(str(Path.cwd()))  # a class of the user's own
    quiet_not_ours()
    try:
        trust.allow_each(given.trust)
        account = export_run(given.run, given.to, given.format, given.rank)
    except UsageError as error:
        sys.exit(str(error))
    dropped = account.get("dropped_energy")
    note = f", dropping {dropped:.3%} of the change's energy" if dropped else ""
    print(f"wrote {account['to']}{note}")
    for line in account["notes"]:
        print(line)


if __name__ == "__main__":
    main()
