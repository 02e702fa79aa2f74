"""A study driven to its end by a launcher that writes records, however often it is interrupted."""

import json
import math
import re
from dataclasses import replace

import pytest

from lab.errors import UsageError
from lab.record import RunRecord, lock, write
from lab.record.study import read_study, write_study
from lab.sweep.declaration import declare
from lab.sweep.drive import drive
from lab.sweep.runs import scan

STUDY = declare(
    {
        "name": "s", "question": "Does it?", "arms": {"a": "init=a", "svd[gradient]": "init=svd"}, "baseline": "a",
        "margin": 1.0, "seeds": [1, 2], "learning_rates": [1e-4, 1e-3, 1e-2],
    }
)  # fmt: skip


class Launcher:
    """Ends every job as `status` says, and dies in the middle of job number `dies_at`."""

    def __init__(self, study_dir, status=lambda given: "completed", dies_at=None):
        self.study_dir, self.status, self.dies_at, self.batches = study_dir, status, dies_at, []

    def __call__(self, jobs, first):
        self.batches.append(len(jobs))
        for overrides in jobs:
            given = dict(item.split("=", 1) for item in overrides)
            folder = self.study_dir / given["hydra.sweep.subdir"].strip("'")
            folder.mkdir(exist_ok=True, parents=True)
            if len(self.batches) - 1 == self.dies_at:
                raise KeyboardInterrupt
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints" / "last.ckpt").touch()
            rate, seed = float(given["optim.lr"]), int(given["seed"])
            write(
                folder,
                RunRecord(
                    status=self.status(given), stage=given["stage"], arm=given["arm"].strip("'"), seed=seed,
                    config={"optim": {"lr": rate}}, metrics={"val_loss": math.log10(rate / 1e-3) ** 2 + seed / 100},
                ),
            )  # fmt: skip


@pytest.fixture
def study_dir(tmp_path):
    write_study(tmp_path, STUDY)
    return tmp_path


def go(study_dir, launcher, one_by_one=True, keep_checkpoints=False, study=None):
    given = study or read_study(study_dir)
    kind = {"launcher": "BasicLauncher", "one_by_one": one_by_one, "keep_checkpoints": keep_checkpoints}
    return drive(study_dir, given, launcher, **kind, poll_seconds=0.01)


def outcomes(study_dir):
    return sorted((run.stage, run.arm, run.learning_rate, run.seed, run.status) for run in scan(study_dir, STUDY)[0])


def test_a_study_is_tuned_and_judged_in_numbered_directories(study_dir):
    assert go(study_dir, Launcher(study_dir)) == []
    names = sorted((path.name for path in study_dir.iterdir() if path.is_dir()), key=lambda n: int(n.split("_")[0]))
    assert names[0] == "0_tune_a_lr=0.0001_seed=0"
    assert names[-1] == "13_verdict_svd[gradient]_lr=0.001_seed=2"
    assert all(re.fullmatch(r"\d+_(tune|verdict)_.+_lr=.+_seed=\d+", name) for name in names)
    assert {entry["directory"] for entry in read_study(study_dir).jobs.values()} == set(names)


ODD = ["x/y", "data.path=/a/b", 'C:\\d*?"<>|', ".hidden/.dots", "ä" * 200, "l" * 300, "n\nm", "$HOME"]


def test_an_arm_of_any_name_is_run_once_in_a_folder_that_any_system_can_hold(tmp_path):
    """Its own name is in the record. Narrowing on the command line makes such names."""
    arms = {"a": "init=a", **{name: f"init={number}" for number, name in enumerate(ODD)}}
    study = declare(
        {
            "name": "s", "question": "Does it?", "arms": arms, "baseline": "a", "contrasts": ["x/y"], "margin": 1.0,
            "seeds": [1, 2], "learning_rates": [1e-3],
        }
    )  # fmt: skip
    launcher = Launcher(tmp_path)
    assert go(tmp_path, launcher, study=study) == []
    assert len(launcher.batches) == 2 * len(arms), "each job once"
    assert {run.arm for run in scan(tmp_path, study)[0]} == set(arms)
    folders = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(folders) == 2 * len(arms)
    for path in folders:
        assert re.fullmatch(r"\d+_verdict_[^/\\:*?\"<>|$\x00-\x1f]+_lr=0.001_seed=[12]", path.name)
        assert len(path.name.encode()) <= 255
    assert read_study(tmp_path).arms == study.arms


def test_a_folder_that_an_earlier_version_named_after_an_arm_with_a_slash_is_not_taken_again(tmp_path):
    arms = {"a": "init=a", "x/y": "init=b"}
    study = declare(
        {
            "name": "s", "question": "Does it?", "arms": arms, "baseline": "a", "margin": 1.0, "seeds": [1],
            "learning_rates": [1e-3],
        }
    )  # fmt: skip
    lost = {"directory": "1_verdict_x/y_lr=0.001_seed=1", "launcher": "BasicLauncher", "submitted": ""}
    study = replace(study, jobs={"verdict_x/y_lr=0.001_seed=1": lost})
    assert go(tmp_path, Launcher(tmp_path), study=study) == []
    assert {run.arm for run in scan(tmp_path, study)[0]} == set(arms)


def test_a_launcher_of_many_gets_a_stage_at_once(study_dir):
    launcher = Launcher(study_dir)
    go(study_dir, launcher, one_by_one=False)
    assert launcher.batches == [6, 4, 4], "the grids, their refinements, the verdicts"


@pytest.mark.parametrize("dies_at", [0, 3, 6, 11])
def test_a_planner_that_dies_is_replaced_and_leaves_the_same_runs(study_dir, tmp_path, dies_at):
    with pytest.raises(KeyboardInterrupt):
        go(study_dir, Launcher(study_dir, dies_at=dies_at))
    go(study_dir, Launcher(study_dir))
    alone = tmp_path / "alone"
    alone.mkdir()
    go(alone, Launcher(alone), study=STUDY)
    assert outcomes(study_dir) == outcomes(alone)
    names = {path.name for path in alone.iterdir() if path.is_dir()}
    assert {path.name for path in study_dir.iterdir() if path.is_dir() and path.name != "alone"} == names


def test_a_failed_job_is_retried_once_and_named_and_stops_no_other(study_dir):
    broken = Launcher(study_dir, status=lambda given: "failed" if given["seed"] == "2" else "completed")
    assert go(study_dir, broken) == ["verdict_a_lr=0.001_seed=2", "verdict_svd[gradient]_lr=0.001_seed=2"]
    assert len(broken.batches) == 16
    assert go(study_dir, Launcher(study_dir)) == []


@pytest.fixture
def waited(monkeypatch):
    """Seconds that a planner would have waited, one after another."""
    seconds = []
    monkeypatch.setattr("lab.sweep.drive.time.sleep", seconds.append)
    return seconds


@pytest.mark.parametrize("one_by_one", [True, False])
def test_a_launcher_that_begins_nothing_ends_the_study_and_no_job_is_given_up(
    study_dir, capsys, waited, tmp_path, one_by_one
):
    def refuse(jobs, first):
        raise RuntimeError("sbatch: Unable to contact slurm controller")

    with pytest.raises(UsageError, match=r"in 5 attempts \(RuntimeError: sbatch.*resume_study=") as raised:
        go(study_dir, refuse, one_by_one=one_by_one)
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert "the launcher raised RuntimeError: sbatch" in capsys.readouterr().err
    assert waited == [5, 30, 120, 600]
    assert go(study_dir, Launcher(study_dir)) == [], "it goes on, each job in its first attempt"
    names = {path.name for path in study_dir.iterdir() if path.is_dir()}
    assert {entry["directory"] for entry in read_study(study_dir).jobs.values()} == names


def test_a_launcher_that_is_out_of_order_for_a_while_costs_no_attempt(study_dir, waited):
    calls, works = [], Launcher(study_dir)

    def shaky(jobs, first):
        calls.append(len(jobs))
        if len(calls) % 5 != 0:  # four times in a row, and again once jobs have been begun
            raise OSError("sbatch is away")
        works(jobs, first)

    assert go(study_dir, shaky, one_by_one=False) == []
    assert works.batches == [6, 4, 4]
    assert waited == [5, 30, 120, 600] * 3


def test_of_jobs_whose_launcher_raised_only_those_begun_have_had_an_attempt(study_dir, waited):
    """It loses the first of each batch that it begins: which is retried once, as any, and the others are not lost."""
    lost = []

    def loses(jobs, first):
        given = dict(item.split("=", 1) for item in jobs[0])
        if (given["seed"], given["arm"], given["stage"]) == ("2", "'a'", "verdict"):
            lost.append(study_dir / given["hydra.sweep.subdir"].strip("'") / ".hydra")
            lost[-1].mkdir(parents=True, exist_ok=True)
            (lost[-1] / "config.yaml").write_text("as Hydra does, before the job is called")
            raise RuntimeError("a job died")
        works(jobs, first)

    works = Launcher(study_dir)
    assert go(study_dir, loses) == ["verdict_a_lr=0.001_seed=2"]
    assert len(lost) == 2
    assert waited == []


def test_jobs_that_cannot_be_composed_end_the_study_before_any_attempt_is_counted(study_dir):
    def refuse(jobs, first):
        raise UsageError("Could not override 'hydra.launcher.n_jobs'.")

    with pytest.raises(UsageError):
        go(study_dir, refuse, one_by_one=False)


def test_completed_jobs_drop_what_only_a_continuation_needs(study_dir, tmp_path):
    go(study_dir, Launcher(study_dir))
    assert not list(study_dir.glob("*/checkpoints/last.ckpt"))
    kept = tmp_path / "kept"
    kept.mkdir()
    go(kept, Launcher(kept), keep_checkpoints=True, study=STUDY)
    assert len(list(kept.glob("*/checkpoints/last.ckpt"))) == 14


def test_an_interrupted_run_that_is_given_up_keeps_its_checkpoint_and_goes_on_at_the_next_start(study_dir):
    resumed = []

    def killed(given):
        return "running" if (given["stage"], given["seed"], given["arm"]) == ("verdict", "2", "'a'") else "completed"

    class Killing(Launcher):
        def __call__(self, jobs, first):
            if any(item.startswith("resume=") for item in jobs[0]):
                resumed.append(self.study_dir / dict(i.split("=", 1) for i in jobs[0])["hydra.sweep.subdir"].strip("'"))
            else:
                super().__call__(jobs, first)

    assert go(study_dir, Killing(study_dir, status=killed)) == ["verdict_a_lr=0.001_seed=2"]
    (folder,) = resumed
    assert list(study_dir.glob("*/checkpoints/last.ckpt")) == [folder / "checkpoints" / "last.ckpt"]
    go(study_dir, Killing(study_dir, status=killed))
    assert set(resumed) == {folder}


def test_two_planners_do_not_share_a_directory(study_dir):
    with lock(study_dir), pytest.raises(UsageError, match="still live"):
        go(study_dir, Launcher(study_dir))


def test_a_study_that_another_changed_before_it_was_ours_goes_on_as_it_stands(study_dir):
    read_before = read_study(study_dir)
    go(study_dir, Launcher(study_dir))
    done, never = read_study(study_dir), Launcher(study_dir)
    given = {"launcher": "BasicLauncher", "one_by_one": True, "keep_checkpoints": False}
    drive(study_dir, read_before, never, **given, begin=lambda: read_study(study_dir))
    assert read_study(study_dir) == done
    assert never.batches == []


def test_a_job_that_another_process_runs_is_waited_for(study_dir, monkeypatch):
    folder = study_dir / "0_tune_a_lr=0.0001_seed=0"
    folder.mkdir()
    fields = {"stage": "tune", "arm": "a", "seed": 0, "config": {"optim": {"lr": 1e-4}}}
    write(folder, RunRecord(**fields))
    (study_dir / "study.json").write_text(json.dumps(vars(STUDY)))
    held = lock(folder)
    held.__enter__()

    def ends(seconds):
        held.__exit__(None, None, None)
        write(folder, RunRecord(**fields, status="completed", metrics={"val_loss": 0.1}))

    monkeypatch.setattr("lab.sweep.drive.time.sleep", ends)
    launcher = Launcher(study_dir)
    go(study_dir, launcher, one_by_one=False)
    # the other arm's refinement need not wait, but both are judged together
    assert launcher.batches == [5, 2, 2, 4]
