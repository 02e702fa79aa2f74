"""What the record of a job says when its processes are gone: the first to end is the cause."""

import signal
import sys

import pytest

from lab.launch import ending
from lab.process import heartbeat, workers
from lab.process.hang import Hang, Stack
from lab.process.heartbeat import DONE, NOTHING, TOLD
from lab.process.workers import End, Ending

RUNNING = ("running", None)
BUG = {"type": "KeyError", "message": "a bug", "rank": 0, "traceback": "..."}
LOST = {"type": "Lost", "message": "connection closed", "rank": None, "traceback": "..."}


def killed(rank, at, number=signal.SIGKILL):
    return End(rank, -number, at, NOTHING, True)


def told(rank, at, status=1):
    return End(rank, status, at, TOLD, True)


@pytest.fixture
def noted(tmp_path, monkeypatch):
    """A function that notes a word at a time."""

    def note(error, at, lost=False, status="failed"):
        monkeypatch.setattr("lab.launch.ending.time.monotonic", lambda: at)
        return ending.note(tmp_path, status, error, lost)

    return note


def verdict(run_dir, *ends, found=RUNNING, **more):
    return ending.verdict(Ending(ends, **more), run_dir, 2, found)


def test_a_silent_death_comes_before_the_lost_connection_that_was_noticed_ahead_of_it(tmp_path, noted):
    noted(LOST, 9.99, lost=True)  # the kernel closes connections before it tells the parent
    status, error = verdict(tmp_path, killed(1, 10.0), told(0, 11.0), found=("failed", LOST))
    assert (status, error["rank"], error["signal"], error["exit_code"]) == ("failed", 1, "SIGKILL", None)
    assert error["message"] == (
        f"the process of rank 1 was killed by SIGKILL, as the system does when memory runs out; resume={tmp_path}"
    )


@pytest.mark.parametrize(("died", "cause"), [(9.0, 1), (11.0, 0)])
def test_between_a_death_and_anothers_own_error_the_earlier_is_the_cause(died, cause, tmp_path, noted):
    noted(BUG, 10.0)
    ends = sorted([killed(1, died, signal.SIGABRT), told(0, 12.0)], key=lambda end: end.at)
    assert verdict(tmp_path, *ends, found=("failed", BUG))[1]["rank"] == cause


def test_of_two_that_were_killed_the_first_is_named(tmp_path):
    assert verdict(tmp_path, killed(1, 10.0), killed(0, 10.01))[1]["rank"] == 1
    assert verdict(tmp_path, killed(0, 10.0), killed(1, 10.01))[1]["rank"] == 0


def test_a_lost_connection_gives_way_to_whoever_knows_better_and_to_nobody_else(noted, tmp_path):
    assert noted(LOST, 1.0, lost=True) == ("failed", LOST)
    assert noted({**LOST, "message": "another"}, 2.0, lost=True) == ("failed", LOST)
    assert noted(BUG, 3.0) == ("failed", BUG)
    assert noted({"type": "Diverged"}, 4.0, status="diverged") == ("failed", BUG)
    assert verdict(tmp_path, told(0, 5.0), told(1, 5.0), found=("failed", LOST)) == ("failed", BUG)


def test_a_rank_that_diverges_is_the_ending_though_another_lost_it(tmp_path, noted):
    error = {"type": "Diverged", "message": "nan", "rank": 1}
    noted(error, 1.0, status="diverged")
    assert verdict(tmp_path, told(1, 2.0, 3), told(0, 2.0), found=("failed", LOST)) == ("diverged", error)


def test_what_is_completed_stays_so_whatever_became_of_a_process_behind_it(tmp_path):
    found = ("completed", None)
    assert verdict(tmp_path, killed(1, 10.0), End(0, 0, 11.0, DONE, True), found=found) == found
    assert Ending((End(1, -signal.SIGSEGV, 10.0, DONE, True),)).first is None, "its last word was that all is done"


def test_a_signal_that_was_handed_on_is_no_death_but_another_is(tmp_path):
    early = killed(1, 10.0, signal.SIGTERM)  # before it listened
    status, error = verdict(tmp_path, early, killed(0, 10.0, signal.SIGTERM), signals=("SIGTERM",))
    assert (status, error["message"], error["signal"]) == ("interrupted", "SIGTERM before the first step", "SIGTERM")
    status, error = verdict(tmp_path, early, signals=("SIGTERM",))  # we had to end the other
    assert (status, error["message"]) == ("interrupted", f"SIGTERM, and no checkpoint within 300 s; resume={tmp_path}")
    assert verdict(tmp_path, killed(1, 10.0), told(0, 10.0), signals=("SIGTERM",))[1]["signal"] == "SIGKILL"


def test_a_hang_is_the_ending_whatever_the_processes_said_when_they_were_woken(tmp_path, noted):
    noted(LOST, 1.0, lost=True)
    stack = Stack('Thread 0x1 (most recent call first):\n  File "mine.py", line 7 in work')
    status, error = verdict(tmp_path, found=("failed", LOST), hang=Hang({0: stack}, 60.0))
    assert (status, error["type"], error["rank"], error["traceback"]) == ("failed", "Hung", 0, stack.text)
    assert error["message"].endswith(f"; resume={tmp_path}")


def test_an_exit_without_a_word_is_a_death_too():
    assert Ending((End(0, 0, 1.0, NOTHING, True),)).first.how == "exited with 0 in the middle of the run"
    assert Ending((End(0, 2, 1.0, NOTHING, False),)).first.how.startswith("could not start and exited with 2; ")


@pytest.mark.parametrize(
    "text", ["[x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:4. Look.", "gloo/"]
)
def test_losing_a_connection_is_told_from_a_bug(text, tmp_path):
    assert ending.is_loss(RuntimeError(text))
    assert not ending.is_loss(RuntimeError("shapes differ"))
    assert not ending.is_loss(OSError(text))


def test_torchs_own_errors_of_a_group_are_lost_connections():
    torch = pytest.importorskip("torch")
    assert ending.is_loss(torch.distributed.DistBackendError("NCCL error"))


WORKER = """
import os, signal, sys, time
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0.02)
sys.exit(1)
"""


def test_the_order_of_ends_is_that_of_time(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "WORKER", (sys.executable, "-c", WORKER))
    found = workers.run(tmp_path, 2, 1, 60.0, {})
    assert [(end.rank, end.status, end.word) for end in found.ends] == [(1, -9, NOTHING), (0, 1, NOTHING)]


def test_a_worker_that_cannot_start_is_named_and_what_it_said_is_on_the_console(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(workers, "WORKER", (sys.executable, "-m", "lab.no_such_worker"))
    found = workers.run(tmp_path, 2, 1, 60.0, {})
    status, error = ending.verdict(found, tmp_path, 2, RUNNING)
    assert (status, error["exit_code"], error["signal"]) == ("failed", 1, None)
    assert "could not start and exited with 1; what it said is above" in error["message"]
    assert "No module named lab.no_such_worker" in capfd.readouterr().err


def test_a_rank_without_a_timeout_is_never_taken_for_hung(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "WORKER", (sys.executable, "-c", "import time; time.sleep(0.5)"))
    monkeypatch.setattr("lab.process.hang.GRACE", 0.2)  # it shows no stack
    monkeypatch.setattr(heartbeat, "own", heartbeat.Slot(bytearray(heartbeat._SIZE)))  # jobs of this process used it
    assert workers.run(tmp_path, 1, 1, 0.1, {}).hang is not None
    assert workers.run(tmp_path, 1, 1, None, {}).hang is None
    assert heartbeat.own.word == NOTHING
