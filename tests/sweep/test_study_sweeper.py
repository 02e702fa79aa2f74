"""Studies through Hydra, as a user starts them: killed, resumed, refused, failed; and multiruns beside them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from in_process import tree
from jobs import SMALL, shell

from lab import record, train
from lab.report.study import load_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MINE = """
# @package _global_
defaults:
  - override /hydra/sweeper: study
  - override /hydra/launcher: beside
hydra:
  mode: MULTIRUN
  sweeper:
    study:
      name: mine
      question: Is rank 2 enough?
      arms: {r4: rank=4, r2: rank=2}
      baseline: r4
      margin: 1%
      seeds: [1]
      learning_rates: [1.0e-3, 3.0e-3]
      max_jobs: 7
"""
QUICK = ("evaluate.accuracy=false", "evaluate.num_samples=0", "schedule.max_steps=2", "schedule.max_epochs=null")
MICRO = tuple(item for item in SMALL if item != "rank=4")  # rank is the study's axis
STUDY = ("--config-dir=conf", *MICRO, "experiment=mine", *QUICK)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A user's folder with a study of their own."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(MINE.lstrip())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def main(monkeypatch, *arguments):
    """`lab.train` in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["lab-train", *arguments])
    try:
        train.main()
    except SystemExit as end:
        if isinstance(end.code, str):  # as the interpreter does at its end
            print(end.code, file=sys.stderr)
            return 1
        return end.code
    return 0


def table(study_dir):
    """What a report is made of, without what a clock says."""
    study = load_study(study_dir)
    assert not study.problems
    return sorted(
        (run.name.partition("_")[2], run.status, run.record.steps, run.value("val_loss"), run.value("test_loss"))
        for run in study.runs
    )


def test_a_killed_study_ends_as_one_left_alone_whatever_the_launcher(here):
    """Killed with one process and options of the launcher and the sweeper the experiment names; left alone with two."""
    checkout = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": checkout}
    options = ("hydra.launcher.n_jobs=1", "hydra.sweeper.study.max_jobs=7")
    killed = subprocess.Popen(
        [sys.executable, "-m", "lab.train", *STUDY, "hydra.sweep.dir=killed", *options], cwd=here, env=env,
        stdout=(here / "log").open("w"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while len(list((here / "killed").glob("2_*/metrics.csv"))) == 0:
        assert killed.poll() is None, (here / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = {path: path.stat().st_mtime_ns for path in (here / "killed").glob("[01]_*/result.json")}
    assert len(before) == 2

    done = shell("resume_study=killed", cwd=here, small=False)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a completed job is not run again"
    alone = ("hydra.sweep.dir=alone", "hydra.launcher.n_jobs=2")
    done = shell(*STUDY, *alone, cwd=here, small=False)
    assert done.returncode == 0, done.stderr
    assert table(here / "killed") == table(here / "alone")
    assert len(table(here / "alone")) == 18, "what both rates at an edge take, and a verdict each"
    assert not list(here.glob("*/*/checkpoints/last.ckpt"))

    again = subprocess.run(
        [sys.executable, "-m", "lab.train", "resume_study=alone"], cwd=here, env=env, capture_output=True, text=True
    )
    assert again.returncode == 0
    assert "Launching" not in again.stdout + again.stderr, "nothing was left to do"


def test_a_study_of_the_earlier_procedure_is_read_and_not_gone_on_with(here, monkeypatch, capfd):
    assert main(monkeypatch, *STUDY, "hydra.sweep.dir=out", "optim.lr=1e-3") == 0
    path = here / "out" / "study.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in held.items() if key not in ("procedure", "horizon")}))
    assert main(monkeypatch, "resume_study=out") == 1
    assert "was declared under an earlier procedure" in capfd.readouterr().err
    assert load_study(here / "out").declared.procedure == 1


def test_a_start_where_another_runs_the_study_changes_no_file(here, monkeypatch, capfd):
    (here / "out").mkdir()
    (here / "out" / "multirun.yaml").write_text("how another started it")
    with record.lock(here / "out"):
        before = tree(here / "out")
        assert main(monkeypatch, *STUDY, "hydra.sweep.dir=out") == 1
    assert "is still live: another process is running it" in capfd.readouterr().err
    assert tree(here / "out") == before
    assert (here / "out" / "multirun.yaml").read_text() == "how another started it"


def test_a_key_that_is_no_axis_is_refused_with_the_axes(here, monkeypatch, capfd):
    assert main(monkeypatch, *STUDY, "hydra.sweep.dir=out", "alpha=8,16") == 1
    assert "alpha=8,16 is a list over no axis of mine; its axes are rank, seed, optim.lr." in capfd.readouterr().err
    assert not (here / "out").exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(here, monkeypatch, capfd):
    assert main(monkeypatch, *STUDY, "hydra.sweep.dir=out", "dry_run=true", "rank=4,3", "seed=1,2,3,4") == 0
    out = capfd.readouterr().out
    assert "rank=3               judged     rank=3" in out
    assert "A/A      r4 once more as arm aa, tuned and judged on seeds of its own" in out
    assert "verdict  4 seeds an arm" in out
    assert not (here / "out").exists()


def test_a_study_for_gpus_is_refused_where_there_are_none_but_planned(here, monkeypatch, capfd):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    asked = (*STUDY, "hydra.sweep.dir=out", "hardware=gpu")
    assert main(monkeypatch, *asked) == 1
    assert "cannot run: hardware asks for 1 CUDA device(s) and this machine shows 0" in capfd.readouterr().err
    assert main(monkeypatch, *asked, "dry_run=true") == 0
    assert not (here / "out").exists()


def test_an_arm_that_hydra_cannot_compose_is_refused_before_any_job(here, monkeypatch, capfd):
    assert main(monkeypatch, *STUDY, "hydra.sweep.dir=out", "rank=4,zero") == 1
    assert "rank=zero is not a whole number" in capfd.readouterr().err
    assert not (here / "out").exists()


def test_a_failed_job_is_told_at_once_and_in_the_exit_code_and_stops_no_other(here, monkeypatch, capfd):
    # nothing is tuned; rank 40 is above the smaller side of the micro model's keys
    given = ("hydra.sweep.dir=out", "rank=4,40", "optim.lr=1e-3")
    assert main(monkeypatch, *STUDY, *given) == 1
    err = capfd.readouterr().err
    assert err.count("use rank <= 32") == 2
    assert "given up" in err
    assert sorted(status for _, status, *_ in table(here / "out")) == ["completed", "failed", "failed"]
    study = json.loads((here / "out" / "study.json").read_text())
    assert (study["baseline"], study["contrasts"], study["margin"]) == ("r4", ["rank=40"], "1%")

    assert main(monkeypatch, *STUDY, *given, "alpha=8") == 1
    assert "holds another study" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["resume_study=conf"], "is no study"), (["resume_study=out", "rank=8"], "'rank=8' is not allowed beside it")],
)
def test_what_cannot_be_resumed_is_refused(here, monkeypatch, arguments, sentence):
    (here / "out").mkdir()
    (here / "out" / "multirun.yaml").touch()
    (here / "out" / "study.json").touch()
    monkeypatch.setattr(sys, "argv", ["lab-train", *arguments])
    with pytest.raises(SystemExit, match=sentence):
        train.main()


def test_plain_multiruns_work_beside_it(here, monkeypatch):
    given = ("-m", *SMALL, *QUICK, "hydra.sweep.dir=out", "init=random,svd", "rank=2", "schedule.batch_size=4")
    assert main(monkeypatch, *given) == 0
    assert [run.record.init["scheme"] for run in load_study(here / "out").runs] == ["random", "svd[gradient]"]


def test_optuna_searches_beside_it(here, monkeypatch):
    search = ("hydra/sweeper=optuna_tpe", "hydra.sweeper.n_trials=2", "rank=choice(2,4)", "hydra.sweep.dir=out")
    assert main(monkeypatch, "-m", *SMALL, *QUICK, *search) == 0
    assert len(load_study(here / "out").runs) == 2
