"""A run's selected weights in Hugging Face formats.      python -m lab.export RUN --to DIR [--format adapter|merged]"""

import sys
from pathlib import Path
from typing import Any

from lab import command, record
from lab import config as configuration
from lab.cache import share_weights
from lab.errors import UsageError


def load_model(run_dir: Path) -> tuple[Any, Any]:
    """The selected weights of a run as a live model, and its tokenizer, on the CPU in the run's dtype.

    Raises UsageError where the folder is no run, or its checkpoint is gone or broken.
    """
    from lab import build
    from lab.assemble import load_base, readapt
    from lab.training import checkpoint, hardware

    record.read(run_dir)
    config = configuration.load(run_dir)
    config.hardware.accelerator, config.hardware.devices = "cpu", 1
    name = checkpoint.BEST if config.select == "best" else checkpoint.LAST
    path = checkpoint.folder(run_dir) / name
    if not path.is_file():
        raise UsageError(f"{run_dir} has no {path.relative_to(run_dir)}: nothing to load. Was keep_checkpoints off?")
    content = checkpoint.load(path)
    model = build.make(config.model)
    net, targets = load_base(model, config, hardware.resolve(config.hardware, config.schedule.batch_size))
    adapted = readapt(net, targets, config, content)
    if config.method == "full":
        adapted.net.load_state_dict(content["state_dict"])
    return adapted.net.eval(), model.tokenizer()


def export_run(run_dir: Path, to: Path, format: str, rank: int | None) -> dict[str, Any]:
    """Write the folder and return what is worth saying about it; raises UsageError for what a run cannot give."""
    from lab.adapter.delta import merged
    from lab.adapter.export import export

    method = configuration.load(run_dir).method
    if method == "full" and (format == "adapter" or rank is not None):
        raise UsageError(f"{run_dir} trained every weight (method=full), so it has no adapter; use --format merged.")
    if format == "merged" and rank is not None:
        raise UsageError("--rank re-truncates an adapter; with --format merged there is none.")
    command.check_folder(to, f"--to {to}")
    if to.exists() and any(to.iterdir()):
        raise UsageError(f"{to} is not empty; choose another folder.")
    net, tokenizer = load_model(run_dir)
    said: dict[str, Any] = {"to": str(to)}
    if format == "adapter":
        said["dropped_energy"] = export(net, to, rank=rank).total_dropped_energy
    else:
        whole = net if method == "full" else merged(net)
        whole.save_pretrained(to)
        share_weights(to)
        tokenizer.save_pretrained(to)
    return said


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = command.Parser(prog="lab-export", description=__doc__)
    parser.add_argument("run", type=command.path, metavar="RUN", help="a run directory")
    parser.add_argument("--to", type=command.path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--format", choices=("adapter", "merged"), default="adapter")
    parser.add_argument("--rank", type=int, metavar="R", help="re-truncate each layer's change to rank R")
    given = parser.parse_args(arguments)
    try:
        if given.rank is not None and given.rank < 1:
            raise UsageError(f"--rank must be at least 1; got {given.rank}.")
        said = export_run(given.run, given.to, given.format, given.rank)
    except UsageError as error:
        sys.exit(str(error))
    dropped = said.get("dropped_energy")
    note = f", dropping {dropped:.3%} of the change's energy" if dropped else ""
    print(f"wrote {said['to']}{note}")


if __name__ == "__main__":
    main()
