"""Jobs that submitit holds are known from its files, in Slurm's queue or as processes of this machine."""

import pickle
import stat
import subprocess
import sys

import pytest

from lab.errors import UsageError
from lab.sweep.queue import queued_jobs


def submitted(study_dir, job_id, directory, ended=False):
    folder = study_dir / ".submitit" / job_id
    folder.mkdir(parents=True)
    (folder / f"{job_id}_submitted.pkl").write_bytes(pickle.dumps(["rank=4", f"hydra.sweep.subdir='{directory}'"]))
    if ended:
        (folder / f"{job_id}_0_result.pkl").touch()


def entries(launcher, *directories):
    return {name.partition("_")[2]: {"directory": name, "launcher": launcher} for name in directories}


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """A queue that holds what the test says."""

    def holds(*ids, status=0):
        path = tmp_path / "bin" / "squeue"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\nprintf '%s\\n' {' '.join(ids)}\nexit {status}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")

    return holds


def test_what_slurm_holds_is_queued_and_what_it_lost_is_not(tmp_path, squeue):
    for number, ended in ((0, False), (1, False), (2, True)):
        submitted(tmp_path, f"71_{number}", f"{number}_tune_a_seed={number}", ended)
    squeue("71_0", "71_2", "99")
    jobs = entries("SlurmLauncher", "0_tune_a_seed=0", "1_tune_a_seed=1", "2_tune_a_seed=2", "3_never")
    assert queued_jobs(tmp_path, jobs) == {"tune_a_seed=0"}


def test_a_queue_that_cannot_be_asked_stops_the_planner(tmp_path, squeue):
    submitted(tmp_path, "71", "0_tune_a")
    squeue("x", status=1)
    with pytest.raises(UsageError, match="squeue failed"):
        queued_jobs(tmp_path, entries("SlurmLauncher", "0_tune_a"))


def test_a_local_job_is_queued_while_its_process_lives(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "submitit"])
    try:
        submitted(tmp_path, str(process.pid), "0_tune_a")
        submitted(tmp_path, "1", "1_tune_b")  # another program has that number
        jobs = entries("LocalLauncher", "0_tune_a", "1_tune_b")
        assert queued_jobs(tmp_path, jobs) == {"tune_a"}
    finally:
        process.kill()
        process.wait()
    assert queued_jobs(tmp_path, jobs) == set()


def test_jobs_of_other_launchers_end_with_their_planner(tmp_path):
    submitted(tmp_path, "71", "0_tune_a")
    assert queued_jobs(tmp_path, entries("BesideLauncher", "0_tune_a")) == set()
