"""What a study may be judged by: found before its first job, or refused with what its jobs lack."""

import sys

import pytest
from jobs import SMALL

from lab import config, train
from lab.config import instantiate
from lab.data.judge import judge_of
from lab.errors import UsageError
from lab.record import METRICS, RunRecord
from lab.sweep import metrics
from lab.sweep.declaration import declare

BLOCK = {
    "name": "s", "question": "?", "arms": {"a": "init=random"}, "baseline": "a", "margin": 0.01, "seeds": [1, 2],
    "learning_rates": [1e-3],
}  # fmt: skip
OWN = "+metrics.speed={_target_: builtins.divmod}"
CURVE = ("data.retention=stdlib_docs", "evaluate.forgetting_curve=true", "evaluate.forgetting_at=2.0")


def check(metric, *overrides, **fields):
    study = declare(BLOCK | {"metric": metric} | fields)
    made = config.compose(*SMALL, *overrides)
    metrics.check_measured(study, config.plain_of(made), lambda: judge_of(instantiate.make_data(made.data)) is not None)


@pytest.mark.parametrize(
    ("metric", "overrides", "higher"),
    [
        ("test_loss", (), None),
        ("val_bpb", ("evaluate.test=false",), None),
        ("test_accuracy", (), None),
        ("forgetting", ("data.retention=stdlib_docs",), None),
        ("equal_loss_forgetting", CURVE, None),
        ("seconds.train", ("evaluate.test=false",), None),
        ("trainable_params", (), False),
        ("learned_intruders", (), False),
        ("speed", (OWN,), True),
    ],
)
def test_what_a_run_measures_is_taken(metric, overrides, higher):
    check(metric, *overrides, higher_is_better=higher)


@pytest.mark.parametrize(
    ("metric", "overrides", "sentence"),
    [
        ("tset_loss", (), "metric=tset_loss is measured by no run; did you mean test_loss"),
        ("sped", (OWN,), "did you mean .*speed"),
        ("base_val_loss", (), "is measured by no run"),
        ("seconds.trian", (), "did you mean seconds.train"),
        ("test_loss", ("evaluate.test=false",), "metric=test_loss would be .*evaluate.test=false"),
        ("forgetting", ("evaluate.test=false", "data.retention=stdlib_docs"), "give evaluate.test=true"),
        ("learned_intruders", ("evaluate.test=false",), "give evaluate.test=true"),
        ("learned_intruders", ("method=full",), "method=full learns no pair"),
        ("retention_loss", (), "no text to forget"),
        ("equal_loss_forgetting", ("data.retention=stdlib_docs",), "read off a curve"),
        ("test_accuracy", ("evaluate.accuracy=false",), "evaluate.accuracy=false looks at no answers"),
        ("test_accuracy", ("data.answer_pattern=null",), "data=probability_qa has no answers to judge"),
        ("test_loss", ("data.test_examples=0",), "data=probability_qa has no test side"),
    ],
)
def test_what_no_run_would_measure_is_refused_with_what_is_lacking(metric, overrides, sentence):
    higher = None if metrics.is_higher_better(metric) is not None else False
    with pytest.raises(UsageError, match=sentence):
        check(metric, *overrides, higher_is_better=higher)


def test_what_rates_are_chosen_by_must_be_measured_too():
    with pytest.raises(UsageError, match=r"selection_metric=test_loss would be .*: evaluate\.test=false"):
        check("val_loss", "evaluate.test=false", selection_metric="test_loss")


def test_a_number_of_the_record_is_read_as_the_report_reads_it():
    run = RunRecord(metrics={"val_loss": 2.0}, seconds={"train": 3.0}, peak_memory_bytes=7)
    names = ("val_loss", "seconds.train", "seconds.eval", "peak_memory_bytes", "steps", "status")
    assert [metrics.value_of(run, name) for name in names] == [2.0, 3.0, None, 7, None, None]
    assert not set(metrics.NUMBERS) & set(METRICS)


STUDY = """
# @package _global_
defaults:
  - override /hydra/sweeper: study
hydra:
  mode: MULTIRUN
  sweeper:
    study:
      name: mine
      question: Is rank 2 enough?
      arms: {r4: rank=4, r2: rank=2}
      baseline: r4
      metric: test_loss
      margin: 1%
      seeds: [1]
      learning_rates: [1.0e-3]
"""


def test_a_study_that_nothing_would_measure_is_refused_before_its_first_job(tmp_path, monkeypatch, capfd):
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text(STUDY.lstrip())
    monkeypatch.chdir(tmp_path)
    micro = [item for item in SMALL if item != "rank=4"]
    given = ["--config-dir=conf", "experiment=mine", *micro, "evaluate.test=false", "hydra.sweep.dir=out"]
    monkeypatch.setattr(sys, "argv", ["lab-train", *given])
    with pytest.raises(SystemExit, match="arm r4 of mine cannot run: metric=test_loss would be measured by no run"):
        train.main()
    assert not (tmp_path / "out").exists()
