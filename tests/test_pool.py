"""The pool's processes: none works on after a signal, and one that is gone is replaced."""

import os
import signal
import threading
import time

import pytest
from jobs import SMALL

from hydra_plugins.lab_launchers.beside import BesideLauncher
from lab import config
from lab.launch import beside  # noqa: F401 (before a signal comes)
from lab.process.pool import Died, NoProcess, NotBegun, Pool

LONG = 20.0  # seconds of a task that nothing but a signal ends


@pytest.fixture
def later():
    """Sends a signal to this process after some seconds."""
    timers = []

    def send(number, seconds):
        timers.append(threading.Timer(seconds, os.kill, (os.getpid(), number)))
        timers[-1].start()

    yield send
    for timer in timers:
        timer.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.02, 0.05, 0.3])
def test_a_signal_while_processes_start_ends_every_task(later, number, seconds):
    pool, begun = Pool(2), time.monotonic()
    later(number, seconds)
    outcomes = pool.map(time.sleep, [(LONG,)] * 3)
    assert time.monotonic() - begun < LONG / 2
    assert all(isinstance(each, NotBegun | KeyboardInterrupt) for each in outcomes)
    assert isinstance(outcomes[2], NotBegun)
    assert pool.received == [number]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_task_of_kept_processes_and_no_later_one_begins(later, number):
    pool = Pool(1)
    assert pool.map(abs, [(-1,)]) == [1]
    later(number, 0.5)
    outcomes = pool.map(time.sleep, [(LONG,), (LONG,)])
    assert [type(each) for each in outcomes] == [KeyboardInterrupt, NotBegun]
    assert [type(each) for each in pool.map(abs, [(-1,)])] == [NotBegun]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_between_check_and_task_is_not_lost(monkeypatch, number):
    """It comes when the process is idle, and the task is on its way to it."""
    pool = Pool(1)
    assert pool.map(abs, [(-1,)]) == [1]
    (slot,) = pool._slots
    submit = slot.submit

    def signalled(function, task):
        signal.raise_signal(number)
        time.sleep(0.2)  # time for the process to take it
        return submit(function, task)

    monkeypatch.setattr(slot, "submit", signalled)
    begun = time.monotonic()
    assert [type(each) for each in pool.map(time.sleep, [(LONG,)])] == [NotBegun]
    assert time.monotonic() - begun < LONG / 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.05, 0.5])
def test_a_signal_during_the_forecast_ends_the_sweep(later, capsys, number, seconds):
    launcher = BesideLauncher(None)
    launcher._pool = Pool(2)
    configs = [config.compose(*SMALL)] * 3
    later(number, seconds)
    with pytest.raises(SystemExit) as end:
        launcher._forecast(configs)
    assert end.value.code == 130
    assert "cannot be forecast" not in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_ends_between_two_tasks_is_replaced(number):
    pool = Pool(2)
    before = pool.map(os.getpid, [()] * 6)
    for pid in set(before):
        os.kill(pid, number)
    for _ in range(3):
        after = pool.map(os.getpid, [()] * 6)
        assert all(isinstance(each, int) for each in after)
        assert not set(after) & set(before)


def test_a_process_that_ends_in_a_task_takes_that_one_along_and_is_replaced():
    pool = Pool(1)
    outcomes = pool.map(os._exit, [(1,), (1,)])
    assert [type(each) for each in outcomes] == [Died, Died]
    assert pool.map(abs, [(-1,)]) == [1]


def test_a_process_that_cannot_start_is_told_of_and_tried_again_by_the_next_map(monkeypatch):
    pool = Pool(1)
    with monkeypatch.context() as broken:
        broken.setattr("multiprocessing.spawn._python_exe", b"/bin/false")
        assert [type(each) for each in pool.map(abs, [(-1,), (-2,)])] == [NoProcess, NoProcess]
    assert pool.map(abs, [(-1,)]) == [1]
