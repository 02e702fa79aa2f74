"""Whatever takes long says so: no part of a run is silent for longer than QUIET seconds."""

import pytest
from jobs import run

from lab.process import heartbeat
from lab.training import progress
from lab.training.progress import ProgressBar, aloud

PARTS = [  # of a run of every kind of part, in the order in which they come
    *("the base's val loss", "the base's test loss", "the base's retention loss", "the base's answers"),
    *("initialisation", "val loss", "samples", "test loss", "retention loss", "answers", "what was learned"),
]


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    monkeypatch.setattr(progress, "time", clock := Clock())
    return clock


def test_a_word_comes_with_the_first_beat_after_20_seconds_and_with_none_before(clock, capsys):
    with aloud("answers"):
        for now in (101, 119, 121, 130, 142):
            clock.now = now
            heartbeat.beat()
    clock.now = 500
    heartbeat.beat()
    assert capsys.readouterr().out.splitlines() == ["answers: 21 s so far", "answers: 42 s so far"]


def test_what_is_inside_speaks_for_itself(clock, capsys):
    with aloud("initialisation"):
        with aloud("warm-up"):
            clock.now = 125
            heartbeat.beat()
        heartbeat.beat()
    assert capsys.readouterr().out.splitlines() == ["warm-up: 25 s so far", "initialisation: 25 s so far"]


def test_slow_steps_are_shown_where_there_is_no_terminal(clock, capsys):
    with ProgressBar(total=1000, done=0, enabled=True) as bar:
        for step, now in enumerate((101, 110, 121, 130, 142), 1):
            clock.now = now
            bar.update(step, {"train_loss": 1.0}, None)
    assert [line.split(" ·")[0] for line in capsys.readouterr().out.splitlines()] == ["step 3/1000", "step 5/1000"]


def test_every_long_part_of_a_run_speaks(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(progress, "QUIET", 0.0)
    run(tmp_path / "run", "init=svd", "data.retention=stdlib_docs", "schedule.max_steps=1", "evaluate.max_examples=4")
    said = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if line.endswith("s so far")]
    assert list(dict.fromkeys(said)) == PARTS


def test_a_tick_of_spectra_speaks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "QUIET", 0.0)
    run(tmp_path, "svd_policy=observe", "method=full", "schedule.max_steps=1", "evaluate.test=false")
    assert "spectra of 14 layers: 0 s so far" in capsys.readouterr().out
