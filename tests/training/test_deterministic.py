"""What CUDA needs to repeat itself is set for the length of a job, recorded, and taken back."""

import os
import shutil

import pytest
import torch
from jobs import losses, run

from lab.errors import UsageError
from lab.training import deterministic as room
from lab.training.deterministic import WORKSPACE, deterministic

ON = "hardware.deterministic=true"
SHORT = ("schedule.max_steps=2", "schedule.max_epochs=null", "evaluate.accuracy=false", "evaluate.num_samples=0")


def state():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        os.environ.get(WORKSPACE),
    )


@pytest.fixture(autouse=True)
def _a_process_of_its_own(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    monkeypatch.setattr(room, "_told", [])


def test_within_torch_repeats_itself_and_afterwards_all_is_as_it_was(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = state()
    with deterministic(True):
        assert state() == (True, False, False, ":4096:8")
    assert state() == before == (False, False, True, None)
    with pytest.raises(KeyError), deterministic(True):
        raise KeyError
    assert state() == before
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with deterministic(True):
            assert state()[:2] == (True, False)
        assert state()[:2] == (True, True)
        with deterministic(False):
            assert state()[:2] == (True, True), "what is not asked for is nobody's to change"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_workspace_of_the_users_own_stays_or_is_refused_by_name(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with deterministic(True):
        assert os.environ[WORKSPACE] == ":16:8"
    assert os.environ[WORKSPACE] == ":16:8"
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with pytest.raises(UsageError, match=r"CUBLAS_WORKSPACE_CONFIG=:0:0 does not let .* unset it, or set it to"):
        deterministic(True).__enter__()
    assert not torch.are_deterministic_algorithms_enabled()


def test_cuda_that_has_started_otherwise_cannot_be_told_and_that_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(UsageError, match=r"comes too late for this process, .* with CUBLAS_WORKSPACE_CONFIG=:4096:8"):
        deterministic(True).__enter__()
    monkeypatch.setenv(WORKSPACE, ":4096:8")
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()


def test_the_jobs_of_a_sweep_may_all_ask_for_it_in_one_process(monkeypatch):
    started = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: bool(started))
    with deterministic(True):
        started.append("CUDA")
    with deterministic(True):
        assert os.environ[WORKSPACE] == ":4096:8"


def test_cuda_that_starts_in_a_job_that_did_not_ask_is_remembered(monkeypatch):
    started = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: bool(started))
    with deterministic(True):
        pass  # on a CPU
    with deterministic(False):
        started.append("CUDA")
    with pytest.raises(UsageError, match="comes too late"):
        deterministic(True).__enter__()


def test_a_run_records_what_held_and_trains_the_same_on_a_cpu(tmp_path):
    before = state()
    plain, asked = run(tmp_path / "plain", *SHORT), run(tmp_path / "asked", *SHORT, ON)
    assert state() == before
    assert (plain.environment["deterministic"], asked.environment["deterministic"]) == (False, True)
    assert asked.config["hardware"]["deterministic"] is True
    assert losses(tmp_path / "asked") == losses(tmp_path / "plain")


def test_a_run_whose_second_start_did_not_ask_is_not_called_deterministic(tmp_path, monkeypatch):
    from lab.training.callbacks import StopOnRequest

    class Killed(BaseException):
        pass

    def die(self, trainer, module, batch):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StopOnRequest, "after_step", die)
        with pytest.raises(Killed):
            run(tmp_path, *SHORT, ON, "schedule.save_every_n_steps=1")
    assert run(tmp_path, *SHORT, "schedule.save_every_n_steps=1").environment["deterministic"] is False


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the CPU's code generator needs a C++ compiler")
def test_compiled_blocks_train_under_it_too(tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = ("model.architecture.num_hidden_layers=1", "method=full", "hardware.compile=true")
    assert run(tmp_path, *SHORT, *compiled, ON).status == "completed"
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
