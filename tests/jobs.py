"""Small real runs for tests: in this process, or as a user would start them."""

import os
import subprocess
import sys
from pathlib import Path

from lab import config, record
from lab.launch import job

SMALL = (
    "model=micro",
    "data.train_examples=28",
    "data.val_examples=28",
    "data.test_examples=28",
    "data.retention=null",
    "data.max_length=128",
    "schedule.max_epochs=2",
    "schedule.batch_size=8",
    "schedule.eval_every_n_steps=4",
    "schedule.save_every_n_steps=3",
    "evaluate.max_new_tokens=8",
    "evaluate.sample_tokens=8",
    "evidence.num_examples=8",
    "logger=none",
    "hardware=cpu",
    "hardware.threads=1",
    "hardware.precision=32-true",
    "rank=4",
)


def run(run_dir: Path, *overrides: str) -> record.RunRecord:
    """Run a small job in this process and return its record."""
    run_dir.mkdir(parents=True, exist_ok=True)
    given = [*SMALL, *overrides]
    job.launch(config.compose(*given), run_dir, choices={}, overrides=given, alone=False)
    return record.read(run_dir)


def command(*arguments: str) -> list[str]:
    """The command line of a small job."""
    return [sys.executable, "-m", "lab.train", *SMALL, *arguments]


def with_checkout() -> dict[str, str]:
    """The environment of a process that imports this checkout ahead of whatever else this one was told of."""
    paths = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def shell(*arguments: str, cwd: Path, small: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m lab.train` in a process of its own, from a folder of its own."""
    line = command(*arguments) if small else [sys.executable, "-m", "lab.train", *arguments]
    return subprocess.run(
        line,
        cwd=cwd,
        env={**with_checkout(), **env},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def losses(run_dir: Path) -> list[tuple[str, ...]]:
    """step, train loss, validation loss, rate and gradient norm of every row of metrics.csv, as written."""
    lines = (run_dir / "metrics.csv").read_text().splitlines()
    columns = lines[0].split(",")
    keep = [columns.index(name) for name in ("step", "train_loss", "val_loss", "lr", "grad_norm")]
    return [tuple(line.split(",")[i] for i in keep) for line in lines[1:]]
