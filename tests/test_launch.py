"""Jobs of two gloo processes, started in every way there is, as a user starts them."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import SMALL, command, losses, shell

from lab import record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
QUIET = ("evaluate.accuracy=false", "evaluate.num_samples=0")
TWO = ("hardware=cpu_ddp2", "hardware.precision=32-true")

# A user's own metric runs on every rank: here it looks at the process, or ends it (an error would be an entry).
MINE = """
import hashlib, json, os, signal, time

def look(net, tokenizer):
    rank, sha = os.environ.get("RANK"), hashlib.sha256()
    for name, p in net.named_parameters():
        sha.update(p.detach().numpy().tobytes())
    with open(os.environ["SEEN"], "a") as file:
        print(json.dumps({"rank": rank, "weights": sha.hexdigest(), "env": sorted(os.environ)}), file=file)
    return 1.0

def die(net, tokenizer):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)
"""
LOOK = "+metrics.look={_target_: mine.look}"


def small(*overrides):
    """SMALL without its hardware group, which the tests here choose."""
    kept = [item for item in SMALL if not item.startswith("hardware")]
    return [*kept, "hardware.threads=1", *QUIET, *overrides]


def start(folder, *arguments, module=("lab.train",), **env):
    """Run `python -m lab.train` in a folder that holds mine.py, and return what it said."""
    (folder / "mine.py").write_text(MINE)
    checkout = str(Path(__file__).resolve().parent.parent)
    return subprocess.run(
        [sys.executable, "-m", *module, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": checkout, "SEEN": str(folder / "seen"), **env},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def seen(folder):
    return [json.loads(line) for line in (folder / "seen").read_text().splitlines()]


def processes_of(folder):
    """Command lines that name a folder: what would be left behind."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode().replace("\0", " ")
        except (OSError, UnicodeDecodeError):  # it has just ended
            continue
        if str(folder) in line and int(path.parent.name) != os.getpid():
            found.append(line)
    return found


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """One multirun of the basic launcher: a job of two processes, then one of one, on the same seed."""
    folder = tmp_path_factory.mktemp("sweep")
    arguments = small("init=svd", "hardware.precision=32-true", LOOK, "hydra.sweep.dir=out")
    done = start(folder, "-m", *arguments, "hardware=cpu_ddp2,cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


def test_two_processes_see_the_batches_of_one_and_give_its_losses(sweep):
    folder, _ = sweep
    two, one = losses(folder / "out/0"), losses(folder / "out/1")
    assert len(two) == len(one) == 9
    for here, there in zip(two, one, strict=True):
        for a, b in zip(here[:4], there[:4], strict=True):
            # float32: the sums over a batch run in another order
            assert a == b or math.isclose(float(a), float(b), rel_tol=1e-5)
    records = [record.read(folder / "out" / name) for name in "01"]
    assert records[0].tokens == records[1].tokens
    assert records[0].environment["devices"] == 2
    assert records[0].ranks == records[1].ranks
    # gathered by two processes or by one, the gradient points the same way
    assert math.isclose(records[0].init["delta_norm"], records[1].init["delta_norm"], rel_tol=1e-4)


def test_each_job_ran_once_and_left_nothing_in_the_environment(sweep):
    folder, done = sweep
    ran = seen(folder)
    assert [item["rank"] for item in ran if item["rank"] is None] == [None]
    assert sorted(item["rank"] for item in ran if item["rank"] is not None) == ["0", "1"]
    of_one = next(item for item in ran if item["rank"] is None)
    assert not {"WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE", "LAB_RENDEZVOUS"} & set(of_one["env"])
    assert done.stdout.count("2 devices") == 1
    assert sorted(path.name for path in (folder / "out").iterdir() if path.is_dir()) == ["0", "1"]
    assert not processes_of(folder)


def test_the_ranks_end_with_the_same_weights_bit_for_bit(sweep):
    folder, _ = sweep
    weights = {item["weights"] for item in seen(folder) if item["rank"] is not None}
    assert len(weights) == 1


def test_a_rank_above_0_writes_to_its_log_alone(sweep):
    folder, done = sweep
    assert "imports took" in (folder / "out/0/train_rank1.log").read_text()
    assert "imports took" in (folder / "out/0/train.log").read_text()
    assert not (folder / "out/1/train_rank1.log").exists()
    assert done.stdout.count("step 8/8") == 2  # one console line per job, not per process


def test_nothing_but_the_run_is_on_the_console(sweep):
    _, done = sweep
    assert "Warning" not in done.stdout + done.stderr
    assert "deprecated" not in done.stdout + done.stderr
    assert done.stderr == ""


def test_a_rank_that_dies_ends_the_job_and_leaves_nothing_behind(tmp_path):
    die = "+metrics.die={_target_: mine.die}"
    began = time.monotonic()
    done = start(tmp_path, *small(*TWO, "schedule.max_steps=1", die, "hydra.run.dir=out"))
    assert done.returncode == 1
    (sentence,) = done.stderr.strip().splitlines()
    result = record.read(tmp_path / "out")
    assert (result.status, result.error["rank"], result.error["signal"]) == ("failed", 1, "SIGKILL")
    assert sentence == f"the job in {tmp_path / 'out'} failed: {result.error['message']}"
    assert time.monotonic() - began < 120, "rank 0, asleep for ten minutes, is not waited for"
    assert not processes_of(tmp_path)


def test_sigterm_reaches_the_workers_and_the_run_goes_on_with_one_process(tmp_path):
    checkout = str(Path(__file__).resolve().parent.parent)
    line = [sys.executable, "-m", "lab.train"]
    arguments = small(*TWO, "schedule.max_epochs=8", f"hydra.run.dir={tmp_path / 'out'}")
    env = {**os.environ, "PYTHONPATH": checkout}
    job = subprocess.Popen([*line, *arguments], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    metrics = tmp_path / "out/metrics.csv"
    deadline = time.monotonic() + 300
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 5:
        assert job.poll() is None, job.communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    said = job.communicate(timeout=200)[0].decode()
    assert job.returncode == 130, said
    assert not processes_of(tmp_path)
    result = record.read(tmp_path / "out")
    assert result.status == "interrupted"
    assert "stopped by SIGTERM" in result.error["message"]
    before = losses(tmp_path / "out")
    done = start(tmp_path, f"resume={tmp_path / 'out'}", "hardware=cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"at step {before[-1][0]} of 32" in done.stdout
    after = losses(tmp_path / "out")
    assert after[: len(before)] == before
    assert [int(row[0]) for row in after] == list(range(33))


def test_under_torchrun_the_ranks_share_rank_0s_run_directory(sweep, tmp_path):
    group = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "lab.train")
    done = start(tmp_path, *small(*TWO, "init=svd"), module=group)
    assert done.returncode == 0, done.stdout + done.stderr
    (out,) = (tmp_path / "multirun/single").iterdir()
    assert record.read(out).status == "completed"
    assert losses(out) == losses(sweep[0] / "out/0")
    assert (out / "train_rank1.log").exists()


def test_under_srun_the_tasks_of_a_step_are_the_ranks(sweep, tmp_path):
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
    step |= {"SLURM_JOB_ID": str(os.getpid())}  # the port follows from it
    line = [sys.executable, "-m", "lab.train", *small(*TWO, "init=svd", "hydra.run.dir=out")]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent), **step}
    tasks = [
        subprocess.Popen(
            line,
            cwd=tmp_path,
            env=env | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for task in range(2)
    ]
    said = [task.communicate(timeout=300)[0].decode() for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], "".join(said)
    assert record.read(tmp_path / "out").status == "completed"
    assert losses(tmp_path / "out") == losses(sweep[0] / "out/0")
    assert "step 8/8" in said[0]
    assert "step 8/8" not in said[1]


def test_optuna_with_two_trials_at_once_runs_each_trial_once_with_its_ranks_agreed(tmp_path):
    search = ("hydra/sweeper=optuna_tpe", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2")
    space = ("rank=choice(2,4,8)", "optim.lr=tag(log,interval(1e-4,1e-2))")
    launcher = ("hydra/launcher=beside", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=out")
    given = [item for item in small(*TWO, LOOK, "schedule.max_steps=2") if item != "rank=4"]
    done = start(tmp_path, "-m", *given, *search, *space, *launcher)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(seen(tmp_path)) == 4
    assert len({item["weights"] for item in seen(tmp_path)}) == 2, "two trials, each with one set of weights"
    assert [record.read(tmp_path / "out" / name).status for name in "01"] == ["completed"] * 2
    best = (tmp_path / "out/optimization_results.yaml").read_text()
    assert "best_value" in best
    assert not processes_of(tmp_path)


def test_a_job_pre_empted_under_submitit_is_requeued_and_completes(tmp_path):
    checkout = str(Path(__file__).resolve().parent.parent)
    arguments = [*small(*TWO, "schedule.max_epochs=8"), "hydra/launcher=local", "hydra.sweep.dir=out"]
    env = {**os.environ, "PYTHONPATH": checkout}
    line = [sys.executable, "-m", "lab.train", "-m", *arguments]
    sweep = subprocess.Popen(line, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    metrics = tmp_path / "out/0/metrics.csv"
    deadline = time.monotonic() + 300
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 5:
        assert sweep.poll() is None, sweep.communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(parent_of_worker(tmp_path), signal.SIGUSR2)  # what Slurm sends ahead of the end
    said = sweep.communicate(timeout=400)[0].decode()
    assert sweep.returncode == 0, said
    logs = "".join(path.read_text() for path in (tmp_path / "out/.submitit").rglob("*_log.*"))
    assert "stopped by SIGUSR2" in logs
    assert "Requeued job" in logs
    assert "resuming from last.ckpt" in logs
    assert record.read(tmp_path / "out/0").status == "completed"
    assert [int(row[0]) for row in losses(tmp_path / "out/0")] == list(range(33))


def parent_of_worker(folder):
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode().split("\0")
            status = (path.parent / "stat").read_text()
        except (OSError, UnicodeDecodeError):  # it has just ended
            continue
        if "lab.launch.worker" in line and str(folder) in " ".join(line):
            return int(status.rsplit(")", 1)[1].split()[1])
    raise AssertionError("no worker is running")


def test_eight_a100s_are_refused_on_a_cpu_machine_in_one_sentence(tmp_path):
    done = shell("hardware=a100x8", "schedule.batch_size=8", "hydra.run.dir=out", cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode != 0
    (sentence,) = done.stderr.strip().splitlines()
    assert sentence.startswith("hardware asks for 8 CUDA device(s) and this machine shows 0; use hardware=cpu")
    assert not done.stdout


def test_a_sweep_under_torchrun_is_refused(tmp_path):
    done = subprocess.run(
        [*command(*TWO), "seed=0,1", "--multirun"],
        cwd=tmp_path,
        env={**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode != 0
    assert "each would run the whole sweep" in done.stderr
