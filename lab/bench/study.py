"""Jobs of a study against as many scripts with transformers.Trainer and peft, whole processes in turns.

A study shares its imports, its base and its text between jobs and runs them beside each other; a script starts anew, on
all cores. Both read the same tokens, take as many steps, evaluate the validation and the test side once and save.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from lab import config, record
from lab.bench import BenchRow
from lab.config import instantiate
from lab.data.corpus import load_corpus
from lab.data.encode import Encoded
from lab.training.hardware import cpu_name
from lab.training.progress import console

STUDY = ("experiment=rank_sweep", "study_size=quick")  # three arms and the A/A partners of one
RANK = 8


def run(quick: bool) -> list[BenchRow]:
    """A row for the scripts and one for the study: seconds a job, of processors and of the clock, and their ratios."""
    seeds, scripts = ("1", 1) if quick else ("1,2,3,4,5", 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(folder)
        taken = [_timed(_script(folder)) for _ in range(scripts)]
        command = [sys.executable, "-m", "lab.train", *STUDY, f"seed={seeds}", f"hydra.sweep.dir={folder}/study"]
        study = _timed(command)
        taken += [_timed(_script(folder)) for _ in range(scripts)]
        runs = [path.parent for path in sorted((folder / "study").glob("*/result.json"))]
        done = [record.read(path) for path in runs if record.read(path).status == "completed"]
        losses = json.loads(taken[-1][2].splitlines()[-1])
    like = [each.metrics["test_loss"] for each in done if each.arm == f"r{RANK}"]
    cpu, wall = statistics.median(each[0] for each in taken), statistics.median(each[1] for each in taken)
    common = {"device": cpu_name(), "cores": len(os.sched_getaffinity(0))}
    rows: list[dict[str, Any]] = [
        {
            "contender": "Trainer + peft, a script each",
            "jobs": len(taken),
            "cpu_seconds": cpu,
            "wall_seconds": wall,
            "test_loss": losses["test"],
        },
        {
            "contender": "this lab, a study",
            "jobs": len(done),
            "cpu_seconds": study[0] / len(done),
            "wall_seconds": study[1] / len(done),
            "test_loss": statistics.mean(value for value in like if value is not None),
        },
    ]
    for row in rows:
        row |= {"cpu_ratio": cpu / row["cpu_seconds"], "wall_ratio": wall / row["wall_seconds"], **common}
    console.print(_table(rows))
    return rows


def _prepare(folder: Path) -> None:
    """The base, and the study's own samples as tokens, for the scripts."""
    settings = config.compose(*STUDY, "data.test_examples=50", f"rank={RANK}", "optim.lr=0.003")
    model = instantiate.make(settings.model)
    tokenizer = model.tokenizer()
    corpus = load_corpus(instantiate.make_data(settings.data), tokenizer)
    model.load(torch.float32, 0).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows: dict[str, Any] = {side: rows_of(getattr(corpus, side)) for side in ("train", "val", "test")}
    rows |= {"rank": RANK, "alpha": settings.alpha, "lr": settings.optim.lr}
    rows["batch_size"] = settings.schedule.batch_size
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")


def rows_of(side: Encoded) -> list[dict[str, list[int]]]:
    """Tokens and labels of a side in plain types, as transformers' Trainer takes them."""
    return [{"input_ids": s.input_ids.tolist(), "labels": s.labels.tolist()} for s in side.samples]


def _script(folder: Path) -> list[str]:
    return [sys.executable, "-m", "lab.bench.script", str(folder)]


def _timed(command: list[str]) -> tuple[float, float, str]:
    """Processor seconds (children's too), wall seconds, and what it printed; raises where it fails."""
    console.print(" ".join(command[1:5]))
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall, done.stdout


def _table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(title=f"From start to end, {rows[0]['device']}, {rows[0]['cores']} cores")
    for heading in ("contender", "jobs", "CPU s a job", "wall s a job", "CPU ratio", "wall ratio", "test loss"):
        shown.add_column(heading, justify="left" if heading == "contender" else "right")
    for row in rows:
        shown.add_row(
            row["contender"],
            str(row["jobs"]),
            f"{row['cpu_seconds']:.1f}",
            f"{row['wall_seconds']:.1f}",
            f"{row['cpu_ratio']:.2f}x",
            f"{row['wall_ratio']:.2f}x",
            f"{row['test_loss']:.3f}",
        )
    return shown
