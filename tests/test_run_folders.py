"""A run's folder may have any name and be named from anywhere, and what a run reads is found from anywhere."""

import os
import shutil
from pathlib import Path

import pytest
from in_process import call, tree
from jobs import SMALL, losses

import lab
import lab.export
import lab.replay.__main__
import lab.report.__main__
import lab.suggest.__main__
from lab import config, record, train
from lab.training.callbacks import StopOnRequest

QUICK = ("evaluate.accuracy=false", "evaluate.num_samples=0")
WATCHED = ("svd_policy=observe", "svd_policy.every_n_steps=1", "svd_policy.k=2", "logger=tensorboard")


def start(*arguments, cwd):
    said = call(train.main, *SMALL, *QUICK, *arguments, cwd=cwd)
    assert said.code == 0, said.err
    return said


class Killed(BaseException):
    """Stands for the end of a process: nothing after it runs."""


def killed_after(step, *arguments, cwd, small=SMALL):
    """A run that ends right behind an optimizer step, as by a kill."""

    def die(self, trainer, module, batch):
        if module.run.progress.step == step:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopOnRequest, "after_step", die)
        with pytest.raises(Killed):
            call(train.main, *small, *QUICK, *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A completed run with a ledger, in a folder of a plain name."""
    folder = tmp_path_factory.mktemp("done")
    start(*WATCHED, "schedule.max_steps=2", "hydra.run.dir=run", cwd=folder)
    return folder / "run"


NAMES = (
    *("init=svd,rank=4", "p(1)[2]{3}", "#3 $y 50%", 'it\'s "hi"', "-dash", "größe 日本", "a\\b\\", "tab\tx:*?"),
    *("~tilde", "+plus@at", "null", "3", "|&;<>!", " lead trail ", "''"),
)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_takes_a_run_of_any_name(name, done, tmp_path):
    run = tmp_path / name
    shutil.copytree(done, run)
    before = tree(run)
    for arguments in ([f"resume={name}"], [f"+resume={name}"], [f"resume={run}"]):
        said = call(train.main, *arguments, cwd=tmp_path)
        assert (said.code, said.err) == (0, ""), arguments
        assert said.out == f"{run.resolve()} is completed: skipped.\n"
    assert tree(run) == before
    again = (*SMALL, *QUICK, *WATCHED, "schedule.max_steps=2", "hydra.output_subdir=null")
    said = call(train.main, *again, f"hydra.run.dir={name}", cwd=tmp_path)
    assert said.out == f"{run.resolve()} is completed: skipped.\n", said.err
    for main, arguments in (
        (lab.export.main, [name, "--to", "out"]),
        (lab.report.__main__.main, [name]),
        (lab.replay.__main__.main, [name, "--to", "replayed"]),
        (lab.suggest.__main__.main, ["rank", name, "--to", "out"]),
    ):
        said = call(main, *arguments, cwd=tmp_path)
        assert (said.code, said.err) == (0, ""), arguments
    assert (tmp_path / "out/adapter_model.safetensors").is_file()
    assert (tmp_path / "out/suggest_rank.json").is_file()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two steps that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    start("schedule.max_steps=2", "hydra.run.dir=run", cwd=folder)
    return folder / "run"


@pytest.mark.parametrize("name", ["init=svd,rank=4", "it's [50%] of {$x} #1", "-größe"])
def test_an_interrupted_run_of_any_name_goes_on_in_place(name, whole, tmp_path):
    killed_after(
        1, *WATCHED, "schedule.max_steps=2", "schedule.save_every_n_steps=1", f"hydra.run.dir={name}", cwd=tmp_path
    )
    said = call(train.main, f"resume={name}", cwd=tmp_path)
    assert said.code == 0, said.err
    assert "resuming from last.ckpt at step 1 of 2" in said.out
    assert record.read(tmp_path / name).status == "completed"
    assert losses(tmp_path / name) == losses(whole)
    assert [path.name for path in tmp_path.iterdir()] == [name], "nothing beside it"
    assert list((tmp_path / name).glob("events.out.tfevents.*")), "the logger's folder is the run's"


def test_hydras_own_names_of_overrides_are_folders_to_go_on_with(tmp_path):
    short = ",".join(item.split("=")[0] for item in (*SMALL, *QUICK))  # else the names are too long for a folder
    start("init=svd,olora", "-m", "schedule.max_steps=1", "alpha=8", "hydra.sweep.dir=s(w)eep=1,2",
          "hydra.sweep.subdir=${hydra.job.override_dirname}",
          f"hydra.job.config.override_dirname.exclude_keys=[{short}]", cwd=tmp_path)  # fmt: skip
    runs = sorted(path.parent for path in (tmp_path / "s(w)eep=1,2").glob("*/result.json"))
    assert [run.name for run in runs] == [f"alpha=8,init={init},schedule.max_steps=1" for init in ("olora", "svd")]
    for run in runs:
        said = call(train.main, f"resume={run.relative_to(tmp_path)}", cwd=tmp_path)
        assert "is completed: skipped." in said.out, said.err
    said = call(lab.report.__main__.main, "s(w)eep=1,2", cwd=tmp_path)
    assert (said.code, said.err) == (0, "")


MINE = """
# @package _global_
defaults:
  - override /hydra/sweeper: study
  - override /data: jsonl
data: {path: mine.jsonl}
hydra:
  mode: MULTIRUN
  sweeper:
    study:
      name: it's [mine]
      question: Is rank 2 enough?
      arms: {"r=4,(a)": rank=4, "r{2}": [rank=2, init._target_=mine.Mine]}
      baseline: "r=4,(a)"
      metric: val_loss
      margin: 1%
      seeds: [1]
      learning_rates: [1.0e-3]
"""
CLASS = "from lab.init.random import Random\nclass Mine(Random):\n    pass\n"


@pytest.fixture
def project(tmp_path):
    """A user's folder with data, a class, a tokenizer, a teacher and a study of their own; another to go on from."""
    here = tmp_path / "project (1), the=first"
    (here / "conf/experiment").mkdir(parents=True)
    (here / "mine.jsonl").write_text("".join(f'{{"prompt": "{i}?", "response": "{i}"}}\n' for i in range(60)))
    (here / "mine.py").write_text(CLASS)
    (here / "conf/experiment/mine.yaml").write_text(MINE.lstrip())
    shutil.copytree(Path(lab.__file__).parent / "assets/base", here / "own/base")
    (tmp_path / "elsewhere").mkdir()
    return here, tmp_path / "elsewhere"


MICRO = [item for item in SMALL if not item.startswith(("data.", "rank="))]


def test_a_study_goes_on_from_elsewhere_where_it_was_started(project):
    here, elsewhere = project
    name = "st=udy, {1}"
    asked = ["--config-dir=conf", *MICRO, "experiment=mine", *QUICK, "schedule.max_epochs=null", "schedule.max_steps=1"]
    said = call(train.main, *asked, f"hydra.sweep.dir={name}", cwd=here)
    assert said.code == 0, said.err
    runs = sorted(path.parent for path in (here / name).glob("*/result.json"))
    assert [run.name for run in runs] == ["0_verdict_r=4,(a)_lr=0.001_seed=1", "1_verdict_r{2}_lr=0.001_seed=1"]
    shutil.rmtree(runs[1])  # as if the machine had failed before it
    said = call(train.main, f"resume_study={os.path.relpath(here / name, elsewhere)}", cwd=elsewhere)
    assert said.code == 0, said.err
    assert "1 done" in said.out
    assert {record.read(run).status for run in runs} == {"completed"}
    assert list(elsewhere.iterdir()) == []
    said = call(lab.report.__main__.main, str(here / name), cwd=elsewhere)
    assert (said.code, said.err) == (0, "")


def test_a_run_goes_on_from_elsewhere_with_every_path_it_was_given(project):
    here, elsewhere = project
    given = (
        "data=jsonl", "data.path=mine.jsonl", "data.test_path=./mine.jsonl", "model.tokenizer_name_or_path=own/base",
        "init._target_=mine.Mine", "logger=tensorboard", "logger.save_dir=boards", "schedule.save_every_n_steps=1",
        "schedule.max_steps=2", "hydra.run.dir=out",
    )  # fmt: skip
    killed_after(1, *given, cwd=here, small=MICRO)
    said = call(train.main, f"resume={here / 'out'}", cwd=elsewhere)
    assert said.code == 0, said.err
    assert record.read(here / "out").status == "completed"
    assert list(elsewhere.iterdir()) == []
    assert list((here / "boards").rglob("events.out.tfevents.*"))
    said = call(lab.export.main, str(here / "out"), "--to", "adapter", cwd=elsewhere)
    assert (said.code, said.err) == (0, "")


def test_a_teacher_is_found_from_elsewhere(project):
    here, _ = project
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        found = config.compose("init=svd", "init.source=teacher", "init.teacher=own/base")
    assert found.init["teacher"] == str(here / "own/base")


def test_paths_begin_where_the_command_was_given_also_where_hydra_changes_the_folder(project):
    here, _ = project
    given = [
        *MICRO, *QUICK, "data=jsonl", "data.path=mine.jsonl", "model.tokenizer_name_or_path=own/base",
        "init._target_=mine.Mine", "schedule.max_steps=1", "hydra.job.chdir=true", "hydra.run.dir=out",
    ]  # fmt: skip
    said = call(train.main, *given, cwd=here)
    assert said.code == 0, said.err
    saved = config.load(here / "out")
    assert (saved.data["path"], saved.model["tokenizer_name_or_path"]) == (
        str(here / "mine.jsonl"),
        str(here / "own/base"),
    )
    assert record.read(here / "out").status == "completed"


def test_the_home_is_known_by_its_sign_wherever_a_path_is_given(done, tmp_path, monkeypatch):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    shutil.copytree(done, home / "run")
    elsewhere.mkdir()
    (home / "conf/init").mkdir(parents=True)
    (home / "conf/init/mine.yaml").write_text("_target_: lab.init.random.Random\ndistribution: kaiming\nfilled: A\n")
    (home / "mine.jsonl").write_text("".join(f'{{"prompt": "{i}?", "response": "{i}"}}\n' for i in range(60)))
    monkeypatch.setenv("HOME", str(home))
    for main, arguments in (
        (train.main, ["resume=~/run"]),
        (train.main, ["resume='~/run'"]),
        (train.main, [*SMALL, *QUICK, *WATCHED, "schedule.max_steps=2", "hydra.run.dir=~/run"]),
        (
            train.main,
            [*MICRO, "data=jsonl", "data.path=~/mine.jsonl", "--config-dir=~/conf", "init=mine", "dry_run=true"],
        ),
        (lab.export.main, ["~/run", "--to", "~/adapter"]),
        (lab.report.__main__.main, ["~/run"]),
        (lab.replay.__main__.main, ["~/run", "--to=~/replayed"]),
        (lab.replay.__main__.main, ["~/run", "svd_policy=observe", "--config-dir=~/conf", "--to", "~/replayed"]),
    ):
        said = call(main, *arguments, cwd=elsewhere)
        assert (said.code, said.err) == (0, ""), arguments
    assert list(elsewhere.iterdir()) == []
    assert (home / "adapter/adapter_model.safetensors").is_file()
    assert lab.load_run("~/run").status == "completed"
    assert lab.load_study("~/").runs
