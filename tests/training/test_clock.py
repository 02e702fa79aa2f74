"""Seconds of a run go to one account each, nested or not, and on behind a checkpoint."""

from lab.training import run
from lab.training.run import Clock


class Time:
    """time, by hand."""

    now = 0.0

    def perf_counter(self):
        return self.now


def test_time_in_a_nested_span_is_that_spans_alone(monkeypatch):
    time = Time()
    monkeypatch.setattr(run, "time", time)
    clock = Clock()
    time.now = 1.0
    clock.begin("train")
    time.now = 3.0
    with clock.spent("analysis"):
        time.now = 7.0
        with clock.spent("eval"):
            time.now = 8.0
        assert clock.of("analysis") == 4.0
    time.now = 10.0
    assert clock.of("train") == 4.0, "2 before the analysis, 2 behind it, and read while it goes on"
    clock.end()
    time.now = 100.0
    assert clock.state() == {"train": 4.0, "analysis": 4.0, "eval": 1.0, "total": 100.0}


def test_a_run_that_goes_on_counts_from_where_its_checkpoint_stood(monkeypatch):
    time = Time()
    monkeypatch.setattr(run, "time", time)
    clock = Clock()
    time.now = 5.0
    clock.go_on({"train": 4.0, "total": 100.0})
    clock.begin("train")
    time.now = 6.0
    clock.stop()
    time.now = 7.0
    assert clock.state() == {"train": 5.0, "total": 107.0}


def test_an_exception_ends_its_span(monkeypatch):
    time = Time()
    monkeypatch.setattr(run, "time", time)
    clock = Clock()
    try:
        with clock.spent("eval"):
            time.now = 2.0
            raise KeyError
    except KeyError:
        time.now = 9.0
    assert clock.of("eval") == 2.0
