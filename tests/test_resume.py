"""An interrupted run goes on as if nothing had happened, and says what it cannot do."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from in_process import call
from jobs import SMALL, command, losses, run, shell
from omegaconf import OmegaConf
from safetensors.torch import load_file

from lab import config, record, train
from lab.errors import UsageError
from lab.launch import job, resume
from lab.training.base_loss import base_loss

HARD = ("init=svd", "adapter.dropout=0.2", "hardware.micro_batch_size=2", "schedule.save_every_n_steps=2")


class Killed(BaseException):
    """Stands for the end of a process: nothing after it runs."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder, *HARD)
    return folder


def stop_after(monkeypatch, step):
    """End the run right behind an optimizer step, as a kill would: no checkpoint, no word."""
    from lab.training.callbacks import StopOnRequest

    def die(self, trainer, module, batch):
        if module.run.progress.step == step:
            raise Killed

    monkeypatch.setattr(StopOnRequest, "after_step", die)


@pytest.mark.parametrize("step", [3, 4, 5], ids=["mid-epoch", "at an epoch's end", "behind it"])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(step, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Killed):
            run(tmp_path, *HARD)
    result = run(tmp_path, *HARD)
    assert result.status == "completed"
    assert losses(tmp_path) == losses(whole)
    one, other = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (whole, tmp_path))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert result.metrics["val_loss"] == record.read(whole).metrics["val_loss"]


def test_the_seconds_of_a_resumed_run_go_on_where_its_checkpoint_stood(tmp_path, monkeypatch):
    monkeypatch.setattr("lab.training.run.time", Clock(time))
    monkeypatch.setattr("lab.run.host.base_loss", slow_base_loss)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Killed):
            run(tmp_path)  # saves at steps 3 and 6
    Clock.now += 2000.0  # between the two starts: nobody's time
    result = run(tmp_path)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()[2:]
    seconds = [float(row.rsplit(",", 1)[1]) for row in rows]
    assert len(seconds) == 8
    assert seconds == sorted(set(seconds)), "never back, never twice the same"
    assert seconds[-1] < result.seconds["total"] < 2000
    assert 400 < result.seconds["eval"] < 500, "the base was evaluated on two sides, before the first start's end"
    assert result.seconds["train"] < 200


def slow_base_loss(*args):
    Clock.now += 200.0
    return base_loss(*args)


class Clock:
    """The clock of a module, moved ahead by `now`."""

    now = 0.0

    def __init__(self, real):
        self.real = real

    def perf_counter(self):
        return self.real.perf_counter() + Clock.now


@pytest.mark.parametrize("step", [3, 5], ids=["while ranks fall", "behind the last cut"])
def test_adalora_resumes_bitwise_too(step, tmp_path, monkeypatch):
    adalora = ("rank_strategy=adalora", "schedule.save_every_n_steps=2", "adapter.dropout=0.2")
    whole = run(tmp_path / "whole", *adalora)
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Killed):
            run(tmp_path / "cut", *adalora)
    result = run(tmp_path / "cut", *adalora)
    assert (result.ranks, result.budget) == (whole.ranks, whole.budget)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert (tmp_path / "cut/adalora.csv").read_text() == (tmp_path / "whole/adalora.csv").read_text()
    one, other = (load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("whole", "cut"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_full_training_resumes_bitwise_too(tmp_path, monkeypatch):
    full = ("method=full", "schedule.save_every_n_steps=2", "schedule.max_steps=5")
    run(tmp_path / "whole", *full)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Killed):
            run(tmp_path / "cut", *full)
    run(tmp_path / "cut", *full)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    one, other = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_truncated_checkpoint_falls_back_to_the_previous_and_says_so(whole, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Killed):
            run(tmp_path, *HARD)
    last = tmp_path / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:-2000])
    run(tmp_path, *HARD)
    assert "last.ckpt" in (said := capsys.readouterr().out)
    assert "falling back to previous.ckpt at step 2" in said
    assert losses(tmp_path) == losses(whole)


def test_a_completed_run_is_not_run_again(whole, capsys):
    before = (whole / "result.json").read_bytes()
    run(whole, *HARD)
    assert "completed: skipped" in capsys.readouterr().out
    assert (whole / "result.json").read_bytes() == before


def test_resume_refuses_what_is_no_run_or_still_live(tmp_path, whole):
    with pytest.raises(UsageError, match="holds no result"):
        job.resume_in_place(tmp_path)
    with record.lock(whole), pytest.raises(UsageError, match="still live"):
        job.resume_in_place(whole)


def test_a_full_disk_names_the_path_and_keeps_the_earlier_checkpoint(tmp_path, monkeypatch):
    from lightning.pytorch import Trainer

    real = Trainer.save_checkpoint
    calls = []

    def full(self, path, *args, **kwargs):
        calls.append(path)
        if Path(path).name == "last.tmp" and sum(Path(p).name == "last.tmp" for p in calls) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return real(self, path, *args, **kwargs)

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    with pytest.raises(UsageError, match=r"could not write .*last\.ckpt.*No space left.*earlier checkpoint is intact"):
        run(tmp_path, "schedule.save_every_n_steps=2")
    assert record.read(tmp_path).status == "failed"
    from lab.training import checkpoint

    assert checkpoint.load(tmp_path / "checkpoints/last.ckpt")["progress"]["step"] == 2


@pytest.mark.slow
def test_sigterm_and_sigkill_lose_nothing(whole, tmp_path):
    """One real process, first killed, then resumed and asked to stop, then resumed to its end."""
    checkout = str(Path(__file__).resolve().parent.parent)
    env = {**os.environ, "PYTHONPATH": checkout}
    out = tmp_path / "out"

    def rows():
        path = out / "metrics.csv"
        return len(path.read_text().splitlines()) - 2 if path.exists() else 0

    def start(*arguments):
        return subprocess.Popen(arguments, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def wait_for(condition, process):
        deadline = time.monotonic() + 200
        while not condition():
            assert process.poll() is None, process.communicate()[0].decode()
            assert time.monotonic() < deadline, "too slow"
            time.sleep(0.02)

    slow = ("schedule.max_epochs=40",)  # long enough that a signal meets it training
    first = start(*command(*HARD, *slow, "hydra.run.dir=out"))
    wait_for(lambda: (out / "checkpoints/previous.ckpt").exists(), first)
    first.kill()
    first.wait()
    assert record.read(out).status == "running"
    assert record.status_of(out) == "interrupted"
    resume = (command()[0], "-m", "lab.train", f"resume={out}")
    second = start(*resume)
    before = rows()
    wait_for(lambda: rows() > before + 3, second)
    second.send_signal(signal.SIGTERM)
    said = second.communicate(timeout=120)[0].decode()
    assert second.returncode not in (0, None), said
    assert "SIGTERM" in said
    ended = record.read(out)
    assert ended.status == "interrupted"
    assert ended.steps == int(losses(out)[-1][0])
    assert ended.seconds["total"] > ended.seconds["train"] > 0
    assert "resuming from last.ckpt" in said
    steps = [int(row[0]) for row in losses(out)]
    assert steps == list(range(len(steps))), "no step is missing or repeated"
    reference = run(tmp_path / "reference", *HARD, *slow, f"schedule.max_steps={160}")
    assert reference.status == "completed"
    assert losses(out) == losses(tmp_path / "reference")[: len(steps)]


@pytest.mark.slow
def test_resume_with_another_override_is_refused_in_one_sentence(whole, tmp_path):
    done = shell(f"resume={whole}", "rank=8", cwd=tmp_path, small=False)
    assert done.returncode != 0
    assert "'rank=8' is not allowed beside it" in done.stderr
    assert "Traceback" not in done.stderr


def test_only_a_constant_learning_rate_can_be_extended(whole):
    saved = OmegaConf.structured(config.load(whole))
    with pytest.raises(UsageError, match="only a constant one can be extended"):
        resume.extend(saved, 100)


def test_a_policy_that_switches_at_shares_of_the_run_cannot_be_extended(tmp_path):
    grow = ("svd_policy=grow", "method=full", "schedule.lr_scheduler=constant", "schedule.max_steps=4")
    config.save(config.compose(*SMALL, *grow), tmp_path, Path.cwd())
    with pytest.raises(UsageError, match="svd_policy=grow switches layers at shares of the run's steps"):
        resume.extend(OmegaConf.structured(config.load(tmp_path)), 100)


CONSTANT = ("schedule.lr_scheduler=constant", "schedule.max_epochs=null", "evaluate.accuracy=false")


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("init=svd", "adapter.dropout=0.2"), id="lora"),
        pytest.param(("hardware.micro_batch_size=2", "hardware.num_workers=1"), id="accumulated, a loader's process"),
        pytest.param(("method=full", "svd_policy=observe", "svd_policy.every_n_steps=2"), id="full"),
    ],
)
def test_a_finished_run_with_a_later_end_is_the_longer_run(overrides, tmp_path):
    """Twice, the second end within an epoch; what training did is bitwise that of a run with this end at once."""
    given = (*CONSTANT, *overrides)
    for steps in (4, 5, 9):  # an epoch has 4
        result = run(tmp_path / "extended", *given, f"schedule.max_steps={steps}")
        assert (result.status, result.steps) == ("completed", steps)
    run(tmp_path / "whole", *given, "schedule.max_steps=9")
    one, other = (trained_by(tmp_path / name) for name in ("extended", "whole"))
    assert one == other
    name = "model/model" if "method=full" in overrides else "adapter/adapter_model"
    first, second = (load_file(tmp_path / folder / f"{name}.safetensors") for folder in ("extended", "whole"))
    assert all(torch.equal(first[key], second[key]) for key in second)


def trained_by(folder):
    """Step, train loss, rate and gradient norm of every row; validation is measured at each end besides."""
    return [(step, loss, lr, norm) for step, loss, _, lr, norm in losses(folder)]


def test_a_run_that_ended_with_its_epochs_goes_on_to_more_steps(tmp_path):
    given = (*SMALL, "schedule.lr_scheduler=constant", "schedule.max_epochs=1", "evaluate.accuracy=false")
    assert call(train.main, *given, "hydra.run.dir=out", cwd=tmp_path).code == 0
    assert record.read(tmp_path / "out").steps == 4
    said = call(train.main, "resume=out", "schedule.max_steps=6", cwd=tmp_path)
    assert said.code == 0, said.err
    assert "resuming from last.ckpt at step 4 of 6" in said.out
    assert record.read(tmp_path / "out").steps == 6


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_what_may_stand_beside_a_resumed_run_counts_however_it_is_written(prefix, tmp_path):
    saved = config.compose(*SMALL, "schedule.max_epochs=null", "schedule.max_steps=4", "schedule.lr_scheduler=constant")
    config.save(saved, tmp_path)
    asked = config.to_hydra(config.compose(*SMALL, "hardware.threads=2", "schedule.max_steps=6"))
    asked.resume = str(tmp_path)
    given = [f"{prefix}hardware.threads=2", f"{prefix}schedule.max_steps=6"]
    found = resume.config_of(asked, given)
    assert (found.hardware.threads, found.schedule.max_steps) == (2, 6)
    with pytest.raises(UsageError, match=r"'~hardware\.threads' is not allowed beside it"):
        resume.config_of(asked, ["~hardware.threads"])
