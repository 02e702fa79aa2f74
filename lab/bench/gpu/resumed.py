"""A run that was killed and resumed beside one that was not: the same bits, without and with deterministic=true?"""

import os
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

import lab.run.host  # noqa: F401  # once, where the jobs are forked
from lab import config
from lab.bench.gpu.part import processes
from lab.launch import job
from lab.training.deterministic import REPEATABLE, WORKSPACE

JOB = (
    "adapter.dropout=0.1",
    "schedule.max_epochs=null",
    "schedule.save_every_n_steps=4",
    "schedule.eval_every_n_steps=1000",
    "schedule.lr_scheduler=constant",
    "evaluate.test=false",
    "evaluate.accuracy=false",
    "evaluate.num_samples=0",
    "data.retention=null",
    "logger=none",
)
FULL = ("model=tiny", "schedule.max_steps=60")
TINY = (
    "model=micro",
    "rank=4",
    "data.train_examples=56",
    "data.val_examples=28",
    "data.test_examples=28",
    "data.max_length=128",
    "schedule.batch_size=8",
    "schedule.max_steps=14",
)
ROWS_BEFORE_THE_KILL = 9  # of metrics.csv, its heading among them


def rows(tiny: bool) -> Iterator[dict[str, Any]]:
    """A row without and one with it: whether losses and weights are the same bits, and by how much weights differ."""
    for deterministic in (False, True):
        if deterministic:  # before CUDA starts in any of its jobs, which an import of theirs can do
            os.environ[WORKSPACE] = REPEATABLE[0]
        with tempfile.TemporaryDirectory() as folder:
            yield {"deterministic": deterministic, **_compare(Path(folder), deterministic, tiny)}


def _compare(folder: Path, deterministic: bool, tiny: bool) -> dict[str, Any]:
    overrides = [*JOB, *(TINY if tiny else FULL), f"hardware.deterministic={str(deterministic).lower()}"]
    whole, cut = folder / "whole", folder / "cut"
    _finish(_started(whole, overrides))
    killed = _kill(_started(cut, overrides), cut / "metrics.csv")
    _finish(_started(cut, overrides))
    one, other = (load_file(run / "adapter/adapter_model.safetensors") for run in (whole, cut))
    difference = max(float((one[name].float() - other[name].float()).abs().max()) for name in one)
    return {
        "killed_at_step": killed,
        "same_losses": _losses(whole) == _losses(cut),
        "same_weights": all(bool((one[name] == other[name]).all()) for name in one),
        "largest_difference": difference,
    }


def _started(run_dir: Path, overrides: list[str]) -> BaseProcess:
    process = processes().Process(target=_run, args=(run_dir, overrides))
    process.start()
    return process


def _run(run_dir: Path, overrides: list[str]) -> None:
    run_dir.mkdir(exist_ok=True)
    job.launch(config.compose(*overrides), run_dir, choices={}, overrides=overrides, alone=False)


def _finish(process: BaseProcess) -> None:
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"a job ended with {process.exitcode}; its own words stand above.")


def _kill(process: BaseProcess, metrics: Path) -> int:
    """Kill a run in its middle; the step of its last row. Raises RuntimeError where it ended sooner."""
    while process.is_alive():
        written = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
        if len(written) >= ROWS_BEFORE_THE_KILL:
            process.kill()
            process.join()
            return int(written[-1].split(",")[0])
        time.sleep(0.005)
    raise RuntimeError(f"the job that was to be killed had ended with {process.exitcode}.")


def _losses(run_dir: Path) -> list[list[str]]:
    """step, losses, rate and gradient norm of each row, as written."""
    lines = [line.split(",") for line in (run_dir / "metrics.csv").read_text(encoding="utf-8").splitlines()]
    keep = [lines[0].index(name) for name in ("step", "train_loss", "val_loss", "lr", "grad_norm")]
    return [[line[i] for i in keep] for line in lines[1:]]
