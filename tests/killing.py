"""Small runs that are killed at a chosen moment, and what of a run must not depend on that."""

import builtins
import importlib
import io
import itertools
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jobs import run
from safetensors.torch import load_file

from lab import record

# A server that has imported everything once forks each job: a real process, killed by a real SIGKILL, for a second.
_jobs = multiprocessing.get_context("forkserver")
_jobs.set_forkserver_preload(["jobs", "lab.run.host"])
OF_TIME = {"seconds", "peak_memory_bytes", "overrides", "environment", "files"}  # and of how often it was started


def start(
    run_dir: Path,
    *overrides: str,
    kill_before: str | None = None,
    call: int = 1,
    by: signal.Signals = signal.SIGKILL,
    kill_after_write: int | None = None,
    writes: Path | None = None,
) -> int:
    """The exit status of a job in a process of its own, which gets a signal before the n-th call of a function.

    `kill_before` is `module:name` or `module:Class.name`, where the caller looks it up. `kill_after_write` dies right
    after the n-th opening, renaming, cutting or removing of a file of the run, from 0; `writes` is a file that takes a
    line for each. Raises where nothing ends the job in two minutes.
    """
    process = _jobs.Process(target=_job, args=(run_dir, overrides, kill_before, call, by, kill_after_write, writes))
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{kill_before}: the job in {run_dir} did not end")
    return process.exitcode


def _job(
    run_dir: Path,
    overrides: tuple[str, ...],
    kill_before: str | None,
    call: int,
    by: signal.Signals,
    kill_after_write: int | None,
    writes: Path | None,
) -> None:
    if kill_before is not None:
        module, _, path = kill_before.partition(":")
        owner: Any = importlib.import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        real, calls = getattr(owner, name), []

        def die(*args: Any, **kwargs: Any) -> Any:
            calls.append(None)
            if len(calls) == call:
                os.kill(os.getpid(), by)
            return real(*args, **kwargs)

        setattr(owner, name, die)
    if kill_after_write is not None or writes is not None:
        _watch_writes(run_dir, kill_after_write, writes)
    run(run_dir, *overrides)


def _watch_writes(run_dir: Path, last: int | None, log: Path | None) -> None:
    """From now on, count what this process does to files of the run, and die behind the `last` of it."""
    count = itertools.count()
    real_open = open

    def watched(name: str, real: Any, writes_to: Callable[..., Any]) -> Any:
        def act(*args: Any, **kwargs: Any) -> Any:
            result = real(*args, **kwargs)
            path = writes_to(*args, **kwargs)
            if isinstance(path, str | Path) and Path(path).is_relative_to(run_dir):
                number = next(count)
                if log is not None:
                    with real_open(log, "a") as file:
                        file.write(f"{name} {Path(path).relative_to(run_dir)}\n")
                if number == last:
                    os.kill(os.getpid(), signal.SIGKILL)
            return result

        return act

    def opened(path: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        return path if set(more.get("mode", mode)) & set("wax+") else None

    def target(source: Any, destination: Any, *rest: Any, **more: Any) -> Any:
        return destination

    def itself(path: Any, *rest: Any, **more: Any) -> Any:
        return path

    for owner, name, writes_to in (
        (builtins, "open", opened),
        (io, "open", opened),
        (os, "replace", target),
        (os, "rename", target),
        (os, "truncate", itself),
        (os, "unlink", itself),
    ):
        setattr(owner, name, watched(name, getattr(owner, name), writes_to))


def facts(run_dir: Path) -> dict[str, Any]:
    """All that a run leaves behind and that a kill must not change, by file; times are left out."""
    found: dict[str, Any] = {"result.json": _record(run_dir), "metrics.csv": _rows(run_dir / "metrics.csv")}
    for name in (
        "decisions.jsonl",
        "learned.csv",
        "adalora.csv",
        "first_step.csv",
        "init.csv",
        "ledger/rows.jsonl",
        "switches.jsonl",
        "retention.csv",
    ):
        path = run_dir / name
        found[name] = (_rows(path) if path.suffix == ".csv" else path.read_text()) if path.exists() else None
    for path in sorted(run_dir.glob("*/*.safetensors")):
        tensors = load_file(path) if path.stat().st_size else {}
        found[str(path.relative_to(run_dir))] = {name: _bits(tensor) for name, tensor in tensors.items()}
    last = torch.load(run_dir / "checkpoints/last.ckpt", map_location="cpu", weights_only=True)
    found["last.ckpt"] = {key: _plain(last[key]) for key in ("state_dict", "optimizer_states", "structure")}
    return found


def differing(one: Path, other: Path) -> list[str]:
    """The files in which two runs differ."""
    a, b = facts(one), facts(other)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def _record(run_dir: Path) -> dict[str, Any]:
    kept = {name: value for name, value in vars(record.read(run_dir)).items() if name not in OF_TIME}
    kept["init"] = {name: value for name, value in kept["init"].items() if name != "seconds"}
    kept["spectral"] = {name: value for name, value in kept["spectral"].items() if name != "cost"}
    return json.loads(json.dumps(kept))


def _rows(path: Path) -> list[list[str]]:
    rows = [line.split(",") for line in path.read_text().splitlines()]
    timed = [i for i, name in enumerate(rows[0]) if name in ("tokens_per_second", "seconds")]
    return [[cell for i, cell in enumerate(row) if i not in timed] for row in rows]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _bits(value) if isinstance(value, torch.Tensor) else value


def _bits(tensor: torch.Tensor) -> tuple[Any, bytes]:
    return (tuple(tensor.shape), str(tensor.dtype)), tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
