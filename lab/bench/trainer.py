"""A whole fine-tuning by this lab beside transformers.Trainer and peft, on the same base, rows and steps.

Each is a process of its own, one after the other: the command `lab.train`, and `lab.bench.script` with the Trainer's
defaults and in bf16. What the scripts saved is then judged as the lab judges its own: loss, right answers, forgetting.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from lab import cache, record
from lab.bench import BenchRow, with_one_gpu
from lab.bench.device import bench_device, name_of
from lab.bench.study import rows_of
from lab.config import RunConfig, bases, instantiate, plain_of
from lab.config.suggest import composed
from lab.data.corpus import Corpus, load_corpus
from lab.errors import UsageError
from lab.launch.worker import quiet_not_ours
from lab.model import Model
from lab.training.answers import Answers
from lab.training.evaluate import evaluate
from lab.training.loss import Scorer
from lab.training.optim import total_steps
from lab.training.progress import console

JOB = (  # the default job on a real base and a task that it can learn
    *("model=smollm2_135m", "data=sums", "init=svd", "rank=16"),
    *("data.retention=stdlib_docs", "evaluate.max_new_tokens=16"),  # a sum has three tokens; the base goes on and on
)
QUICK = ("schedule.max_epochs=null", "schedule.max_steps=4", "evaluate.max_examples=20")
SCRIPTS = {"Trainer + peft": False, "Trainer + peft bf16": True}  # and whether in bf16
SIDES = ("val", "test", "retention")
MEASURES = (*(f"{side}_loss" for side in SIDES), *(f"test_accuracy{end}" for end in ("", "_low", "_high")))
BROUGHT = ("bases", "stdlib")  # kinds of the cache that a user has before a first job


@dataclass(frozen=True)
class Ground:
    """What every contender starts from, as the lab read it."""

    settings: RunConfig
    model: Model
    tokenizer: Any
    corpus: Corpus
    plain_rate: float  # of the scripts, whose pairs are plain LoRA's: its own where the job leaves the rate open


def run(quick: bool, overrides: tuple[str, ...] = ()) -> list[BenchRow]:
    """A row per contender: seconds by part, peak bytes, real tokens a second, and its measures before and after.

    `overrides` are another job than JOB, as for `lab.train`. Raises UsageError where a script could not do it.
    """
    quiet_not_ours()
    given = [*(overrides or JOB), *(QUICK if quick else ())]
    ground = ground_of(given)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [lab_row(given, folder)]
        prepare(ground, folder)
        for contender, bf16 in SCRIPTS.items():
            rows.append(script_row(contender, bf16, ground, folder, rows[0]["base"]))
    common = {"device": name_of(bench_device()), "overrides": given, "rank": ground.settings.rank}
    rows = [{**row, **common} for row in rows]
    Console(width=max(120, Console().width)).print(table(rows))
    return rows


def ground_of(given: list[str]) -> Ground:
    """The base and the rows of a job; raises UsageError where there are none, or the scripts could not do the job."""
    settings = composed(given)
    if settings.method != "lora":
        raise UsageError(f"the scripts train with peft, and method={settings.method} has no adapter; use method=lora.")
    model, data = instantiate.make(settings.model), instantiate.make_data(settings.data)
    for part in (model, data):
        getattr(part, "check", lambda: None)()
    tokenizer = model.tokenizer()
    corpus = load_corpus(data, tokenizer, settings.evaluate.max_examples)
    if not corpus.test.samples:
        raise UsageError(f"data={data.name} has no test side to judge by; give data.test=NAME, or other data.")
    return Ground(settings, model, tokenizer, corpus, bases.plain_rate(plain_of(settings)))


def lab_row(given: list[str], folder: Path) -> BenchRow:
    """The command, with nothing in its cache but the base and the library's text: its losses are known to no run."""
    for kind in BROUGHT:
        held = cache.cache_dir(kind)
        if held is not None:
            (folder / "cache").mkdir(exist_ok=True)
            (folder / "cache" / kind).symlink_to(held)
    line = [sys.executable, "-m", "lab.train", *given, f"hydra.run.dir={folder}/lab"]
    seconds, _ = timed("this lab", line, {"LAB_CACHE": str(folder / "cache")})
    done = record.read(folder / "lab")
    metrics, parts = done.metrics, dict(done.seconds)
    whole, looked_at = parts.pop("total"), done.init.get("tokens") or 0
    return {
        "contender": "this lab",
        "learning_rate": done.config["optim"]["lr"],
        "seconds": {"imports and data": seconds - whole, **parts, "rest": whole - sum(parts.values()), "all": seconds},
        "tokens_per_second": ((done.tokens or 0) - looked_at) / parts["train"],
        "peak_bytes": done.peak_memory_bytes,
        "steps": done.steps,
        "base": {name: metrics.get(f"base_{name}") for name in MEASURES},
        "after": {name: metrics.get(name) for name in MEASURES},
    }


def prepare(ground: Ground, folder: Path) -> None:
    """Base and tokens, for the scripts."""
    ground.model.load(torch.float32, 0).save_pretrained(folder / "base")
    ground.tokenizer.save_pretrained(folder / "base")
    settings, corpus = ground.settings, ground.corpus
    batch = settings.schedule.batch_size
    rows: dict[str, Any] = {side: rows_of(getattr(corpus, side)) for side in ("train", "val", "test")}
    rows |= {"rank": settings.rank, "alpha": settings.alpha, "lr": ground.plain_rate, "batch_size": batch}
    rows["steps"] = total_steps(settings.schedule, -(-len(corpus.train.samples) // batch))
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")


def script_row(contender: str, bf16: bool, ground: Ground, folder: Path, base: dict[str, Any]) -> BenchRow:
    """A script from start to saved adapter, and what its adapter is worth on the stock base, in float32."""
    line = [sys.executable, "-m", "lab.bench.script", str(folder), *(["--bf16"] if bf16 else [])]
    seconds, said = timed(contender, line, {})
    told = json.loads(said.splitlines()[-1])
    parts, corpus, settings = told["seconds"], ground.corpus, ground.settings
    net: Any = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    net = PeftModel.from_pretrained(net, str(folder / "adapter")).to(bench_device())
    answers = Answers(instantiate.make_data(settings.data), corpus, ground.tokenizer, settings.evaluate, bench_device())
    samples = {"val": corpus.val.samples, "test": corpus.test.samples, "retention": corpus.retention}
    with Scorer(net, bench_device(), autocast=False) as scorer:
        after: dict[str, Any] = {
            f"{side}_loss": evaluate(scorer, each, corpus.pad_id).loss for side, each in samples.items() if each
        }
    after |= answers.count(net).accuracy("test_accuracy")
    return {
        "contender": contender,
        "learning_rate": ground.plain_rate,
        "seconds": {"imports and data": seconds - sum(parts.values()), **parts, "all": seconds},
        "tokens_per_second": told["tokens"] / parts["train"],
        "peak_bytes": told["peak_bytes"],
        "steps": told["steps"],
        "base": base,
        "after": after,
    }


def timed(what: str, line: list[str], environment: dict[str, str]) -> tuple[float, str]:
    """Seconds of a process from its start to its end, and what it printed; raises where it fails."""
    console.print(f"{what}: {' '.join(line[1:])}", soft_wrap=True)
    began = time.perf_counter()
    done = subprocess.run(line, env={**with_one_gpu(), **environment}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{what} ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.perf_counter() - began, done.stdout


def table(rows: list[BenchRow]) -> Table:
    """Measures down, contenders across."""
    first = rows[0]
    shown = Table(title=f"One fine-tuning, rank {first['rank']}, {first['steps']} steps, {first['device']}")
    shown.caption = "scripts evaluate validation and test once, and answer nothing; all are judged alike, afterwards"
    shown.add_column("")
    for heading in ("the base", *(row["contender"] for row in rows)):
        shown.add_column(heading, justify="right")
    base = first["base"]
    shown.add_row("learning rate", "", *(f"{row['learning_rate']:g}" for row in rows))
    shown.add_row("test accuracy", *(accuracy(each) for each in (base, *(row["after"] for row in rows))))
    for side in SIDES:
        key = f"{side}_loss"
        if base.get(key) is not None:
            shown.add_row(f"{side} loss", *(f"{each[key]:.4f}" for each in (base, *(row["after"] for row in rows))))
    if base.get("retention_loss") is not None:
        forgotten = (f"{row['after']['retention_loss'] - base['retention_loss']:+.4f}" for row in rows)
        shown.add_row("forgetting", "", *forgotten)
    shown.add_row("real tokens/s in training", "", *(f"{row['tokens_per_second']:.0f}" for row in rows))
    for part in dict.fromkeys(part for row in rows for part in row["seconds"] if part != "all"):
        shown.add_row(f"seconds, {part}", "", *(seconds(row, part) for row in rows))
    shown.add_row("seconds, all", "", *(seconds(row, "all") for row in rows))
    shown.add_row("peak MB of the process", "", *(f"{row['peak_bytes'] / 1e6:.0f}" for row in rows))
    return shown


def seconds(row: BenchRow, part: str) -> str:
    """Of a part, for the table."""
    return f"{row['seconds'][part]:.1f}" if part in row["seconds"] else "–"


def accuracy(measures: dict[str, Any]) -> str:
    """With its interval, for the table."""
    share, low, high = (measures.get(f"test_accuracy{end}") for end in ("", "_low", "_high"))
    return "–" if share is None or low is None or high is None else f"{share:.1%} ({low:.1%} to {high:.1%})"
