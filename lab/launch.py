"""One job: in this process, or in a process group of its own. No torch here; a worker brings it."""

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

from lab import config as configuration
from lab import record
from lab.config import RunConfig
from lab.errors import UsageError

# What a process group leaves in the environment; a job must not inherit it from another.
DISTRIBUTED = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def launch(config: RunConfig, run_dir: Path, choices: dict[str, str], overrides: list[str], alone: bool) -> float:
    """Run one job and return the validation loss of its selected weights; inf where it diverged.

    A finished job is not run again; an interrupted one goes on. Raises UsageError for a user's mistake; exits with a
    status other than 0 where the job was interrupted, or failed, or (when it is the only job) diverged.
    """
    _make_importable(Path.cwd())
    previous = record.read(run_dir) if (run_dir / record.RESULT).exists() else None
    if previous is not None and previous.status == "completed" and not _extends(config, previous):
        print(f"{run_dir} is completed: skipped.")
        return _objective(previous)
    _early_checks(config)
    configuration.save(config, run_dir)
    if previous is None:
        previous = record.RunRecord(study=config.study, stage=config.stage, arm=config.arm, choices=choices)
    previous.overrides = [*previous.overrides, *overrides]
    record.write(run_dir, previous)
    if config.hardware.devices == 1:
        from lab import worker

        result = worker.run(run_dir)
    else:
        result = _process_group(config, run_dir)
    if result.status == "interrupted":
        sys.exit(130)
    if result.status == "diverged" and alone:
        sys.exit(1)
    return _objective(result)


def _extends(config: RunConfig, previous: record.RunRecord) -> bool:
    return config.schedule.max_steps is not None and (previous.steps or 0) < config.schedule.max_steps


def _objective(result: record.RunRecord) -> float:
    value = result.metrics.get("val_loss")
    return math.inf if value is None else value


def _make_importable(folder: Path) -> None:
    """A user's own classes live where the command was given; workers inherit the path."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    checkout = str(Path(__file__).resolve().parent.parent)
    for path in (str(folder), checkout):
        if path not in paths:
            paths.append(path)
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def _early_checks(config: RunConfig) -> None:
    """What can be known before anything heavy is imported: files, hub names, devices."""
    from lab import build

    for node in (config.model, config.data):
        check = getattr(build.make(node), "check", None)
        if check is not None:
            check()


def _process_group(config: RunConfig, run_dir: Path) -> record.RunRecord:
    """Start `devices` workers on a free port, wait for them, and read the record they wrote."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k not in DISTRIBUTED and not k.startswith("TORCHELASTIC")}
    env.setdefault("OMP_NUM_THREADS", str(config.hardware.threads or 1))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=1",
        f"--nproc-per-node={config.hardware.devices}",
    ]
    command += ["--master-addr=127.0.0.1", f"--master-port={port}", "-m", "lab.worker", str(run_dir)]
    with subprocess.Popen(command, env=env) as group:
        try:
            group.wait()
        except KeyboardInterrupt:
            group.wait()  # the workers got the signal too and end at their next step
    result = record.read(run_dir)
    if result.status in ("running", "failed"):
        error = result.error or {}
        raise UsageError(f"the job in {run_dir} failed: {error.get('message', 'a worker died without a word')}")
    return result


def resume_in_place(folder: Path) -> list[str]:
    """The Hydra arguments that make a resumed run write into its own directory; raises UsageError if it cannot."""
    result = record.read(folder)
    if record.is_live(folder):
        raise UsageError(f"resume={folder}: that run is still live; stop it first or wait for its end.")
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"resume={folder}: the folder holds no config.yaml, so it is no run directory.")
    del result
    return [f"hydra.run.dir={folder.resolve()}", "hydra.output_subdir=null"]
