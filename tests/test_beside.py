"""Jobs beside each other on one machine: how many fit, and what a study of several says and leaves behind."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from jobs import SMALL, shell

from hydra_plugins.lab_launchers.beside import BesideLauncher, _kind
from lab import config, record
from lab.launch import beside
from lab.process.pool import Pool

QUICK = ("evaluate.accuracy=false", "evaluate.num_samples=0", "schedule.max_steps=2", "schedule.max_epochs=null")
GB = 1e9


def wanting(**hardware):
    return replace(config.compose(), hardware=replace(config.compose().hardware, **hardware))


def never(configs):
    raise AssertionError("the forecast was asked for, and it costs seconds")


@pytest.fixture
def machine(monkeypatch):
    """Eight cores, 10 GB free, no GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(beside.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(beside.psutil, "virtual_memory", lambda: SimpleNamespace(available=10 * GB))
    monkeypatch.setattr(beside, "CGROUP", Path("/nowhere"))
    return monkeypatch


@pytest.mark.parametrize(
    ("hardware", "bytes_each", "fit"),
    [
        ({"threads": 1}, 0.1 * GB, 8),
        ({"threads": 1}, 3 * GB, 3),
        ({"threads": 1}, 30 * GB, 1),  # one alone may swap or fail, and says so itself
        ({"threads": 3}, 0.1 * GB, 2),
        ({"threads": 1, "devices": 2}, 0.1 * GB, 4),
        ({"threads": 2, "devices": 2}, 4 * GB, 2),
    ],
)
def test_on_a_cpu_the_cores_and_the_memory_decide(machine, hardware, bytes_each, fit):
    assert beside.jobs_at_once([wanting(**hardware)], lambda each: [bytes_each] * len(each)) == fit


def test_the_largest_of_different_jobs_decides(machine):
    jobs = [wanting(threads=1), wanting(threads=2)]
    assert beside.jobs_at_once(jobs, lambda each: [1 * GB, 5 * GB]) == 2
    assert beside.jobs_at_once(jobs, lambda each: [1 * GB, 1 * GB]) == 4


def test_a_job_that_takes_all_cores_runs_alone_and_nothing_is_forecast(machine):
    assert beside.jobs_at_once([wanting(threads=None)], never) == 1
    assert beside.jobs_at_once([wanting(threads=16)], never) == 1


@pytest.mark.parametrize(("gpus", "devices", "fit"), [("0,3,5", 1, 3), ("0,3,5", 2, 1), ("0,1,2,3", 2, 2), ("7", 2, 1)])
def test_where_there_are_gpus_they_decide(machine, gpus, devices, fit):
    machine.setenv("CUDA_VISIBLE_DEVICES", gpus)
    assert beside.jobs_at_once([wanting(accelerator="auto", devices=devices)], never) == fit


def test_jobs_for_the_cpu_of_a_machine_with_gpus_are_counted_by_its_cores(machine):
    machine.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert beside.jobs_at_once([wanting(accelerator="cpu", threads=2)], lambda each: [GB]) == 4


@pytest.mark.parametrize(("limit", "free"), [("6000000000", 4.5 * GB), ("max", 10 * GB), ("1000000000", 0.0)])
def test_a_container_s_limit_counts(machine, tmp_path, limit, free):
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text("1500000000\n")
    machine.setattr(beside, "CGROUP", tmp_path)
    assert beside.free_bytes() == free


@pytest.mark.parametrize("rate", ["optim.lr", "optim.matrix_lr", "optim.embedding_lr", "optim.head_lr"])
def test_jobs_at_other_rates_and_seeds_are_one_kind_and_those_of_other_sizes_are_not(rate):
    assert _kind(["model=micro", f"{rate}=1e-3", "seed=1"]) == _kind(["model=micro", f"{rate}=1e-2", "seed=2"])
    assert _kind(["optim.lr_width=64"]) != _kind(["optim.lr_width=128"])


def test_a_forecast_holds_the_step_and_the_process_and_a_config_that_cannot_run_has_one(tmp_path):
    small = config.compose(*SMALL, *QUICK)
    wide = config.compose(*SMALL, *QUICK, "method=full")
    assert beside.PROCESS_BYTES < beside.forecast_bytes(small) < beside.forecast_bytes(wide)
    broken = config.compose(*SMALL, *QUICK, "adapter.target_modules=[nothing_of_that_name]")
    assert beside.forecast_bytes(broken) == beside.PROCESS_BYTES


def test_a_pool_whose_count_is_lowered_does_one_task_at_a_time(tmp_path):
    pool = Pool(2)
    assert len(set(pool.map(os.getpid, [()] * 8))) == 2
    pool.count = 1
    assert len(set(pool.map(os.getpid, [()] * 8))) == 1


def test_what_cannot_be_forecast_runs_one_at_a_time_and_is_said(machine, capsys):
    class Broken:
        received = ()

        def map(self, function, tasks):
            return [AttributeError("'Mine' object has no attribute 'skeleton'")]

    launcher = BesideLauncher(None)
    launcher._pool = Broken()
    assert beside.jobs_at_once([wanting(threads=1)], launcher._forecast) == 1
    assert (
        "jobs run one at a time: what one takes cannot be forecast (AttributeError: 'Mine'" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_two_processes_do_all_jobs_of_a_sweep_each_saying_one_line(tmp_path):
    seeds = ("seed=1,2,3,4,5,6", "hydra.sweep.dir=out", "hydra/launcher=beside", "hydra.launcher.n_jobs=2")
    done = shell("-m", *SMALL, *QUICK, *seeds, small=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [tmp_path / "out" / str(number) for number in range(6)]
    lines = [line for line in done.stdout.splitlines() if ": completed, val_loss " in line]
    assert sorted(line.split(":")[0] for line in lines) == [run.name for run in runs]
    assert "masked tokens dimmed" not in done.stdout
    assert all("masked tokens dimmed" in (run / beside.CONSOLE).read_text() for run in runs)
    # The peak of a job is known where it is the first of its process; a process more would have imported all again.
    assert sum(record.read(run).peak_memory_bytes is not None for run in runs) == 2
    assert "A worker stopped" not in done.stderr


@pytest.mark.slow
def test_a_job_that_fails_beside_others_is_told_of_and_the_others_go_on(tmp_path):
    ranks = ("rank=2,100000", "hydra.sweep.dir=out", "hydra/launcher=beside", "hydra.launcher.n_jobs=2")
    given = [item for item in SMALL if not item.startswith("rank=")]
    done = shell("-m", *given, *QUICK, *ranks, small=False, cwd=tmp_path)
    assert done.returncode != 0
    assert "0: completed, val_loss" in done.stdout
    assert "1: ended without a result" in done.stdout
    assert "100000" in done.stderr
    assert [record.read(tmp_path / "out" / name).status for name in "01"] == ["completed", "failed"]


@pytest.fixture
def endless(tmp_path):
    """A sweep of two jobs with no end, both in training, and its run directories."""
    seeds = ("seed=1,2,3", "hydra.sweep.dir=out", "hydra/launcher=beside", "hydra.launcher.n_jobs=2")
    steps = ("schedule.max_steps=100000", "schedule.eval_every_n_steps=100000")
    line = [sys.executable, "-m", "lab.train", "-m", *SMALL, *QUICK, *steps, *seeds]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    log = (tmp_path / "log").open("w")
    sweep = subprocess.Popen(line, cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True)
    runs = [tmp_path / "out" / name for name in "01"]
    until(lambda: all(in_training(run) for run in runs), sweep, tmp_path)
    yield sweep, runs
    if sweep.poll() is None:
        sweep.kill()
    for child in workers_of(tmp_path):
        os.kill(child, signal.SIGKILL)


def in_training(run):
    path = run / "metrics.csv"
    return path.exists() and path.read_text().count("\n") > 3  # the first row is from before


def until(reached, sweep, folder):
    deadline = time.monotonic() + 200
    while not reached():
        assert sweep is None or sweep.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.1)


def workers_of(folder):
    """Processes of a pool that were started in a folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if "spawn_main" in " ".join(process.info["cmdline"] or ()) and process.info["cwd"] == str(folder):
            found.append(process.pid)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_a_sweep_its_jobs_stop_with_a_checkpoint_and_no_process_is_left(endless, tmp_path, number):
    sweep, runs = endless
    os.killpg(sweep.pid, number)  # what a terminal sends to everything in the foreground; jobs have their own groups
    status = sweep.wait(timeout=60)
    until(lambda: not workers_of(tmp_path), None, tmp_path)
    said = (tmp_path / "log").read_text()
    assert {record.read(run).status for run in runs} == {"interrupted"}, said
    assert all((run / "checkpoints/last.ckpt").is_file() for run in runs)
    assert not (tmp_path / "out/2/result.json").exists(), "the third is not begun"
    if number != signal.SIGKILL:
        assert status == 130
        assert "stopped: 2 jobs in the middle, 1 not begun" in said
        assert "Traceback" not in said


@pytest.mark.slow
def test_a_job_whose_process_is_killed_takes_no_other_along(endless, tmp_path):
    sweep, runs = endless
    victim = next(pid for pid in workers_of(tmp_path) if str(runs[0]) in open_files(pid))
    os.kill(victim, signal.SIGKILL)
    until(lambda: (tmp_path / "out/2/metrics.csv").exists(), sweep, tmp_path)  # the next is begun in its place
    assert record.is_live(runs[1])
    assert not record.is_live(runs[0])
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait(timeout=60) == 130


def open_files(pid):
    return " ".join(file.path for file in psutil.Process(pid).open_files())
