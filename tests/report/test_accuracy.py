"""Accuracy and the harness's measures in reports: where they were taken, and nowhere else."""

import csv

import pytest
from scipy.stats import binomtest
from synthetic import declare, make_run

from lab import record
from lab.report.accuracy import accuracy_of, accuracy_table, evaluations_table
from lab.report.analysis import analyse
from lab.report.card import card
from lab.report.document import Table, markdown
from lab.report.figure.accuracy import ACCURACY
from lab.report.findings import report
from lab.report.render import write_report
from lab.report.run import load_run

SHARES = {"random": (0.40, 0.50, 0.45), "svd": (0.60, 0.55, 0.65)}


def study(folder, *, accuracy=True, **evaluated):
    """Two arms with three seeds over 400 questions, of which the base answers a tenth."""
    declare(folder, {arm: [f"init={arm}"] for arm in SHARES}, "random", seeds=[1, 2, 3], twin_seeds=[])
    for arm, shares in SHARES.items():
        for seed, share in enumerate(shares, 1):
            metrics = {"test_accuracy": None}
            if accuracy:
                metrics = {"test_accuracy": share, "base_test_accuracy": 0.1, "test_answers_judged": 400}
            place = make_run(folder / f"{seed}_{arm}", arm=arm, seed=seed, loss=2 - share, metrics=metrics)
            if arm in evaluated:
                result = record.read(place)
                result.evaluations = {"sums": {"measures": {"exact_match": evaluated[arm]}, "harness": "0.4.13"}}
                record.write(place, result)
    return analyse(folder)


def test_an_arms_accuracy_has_the_interval_of_its_questions_and_the_bases_beside_it(tmp_path):
    analysis = study(tmp_path)
    table = accuracy_table(analysis)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    ends = binomtest(180, 400).proportion_ci(method="wilson")  # 0.45 of 400
    assert rows["random"] == {
        "arm": "random",
        "runs": "3",
        "questions": "400",
        "base (%)": "10.0",
        "accuracy (%)": "45.0",
        "SD over seeds": "5.0",
        "95 % interval": f"{100 * ends.low:.1f} to {100 * ends.high:.1f}",
    }
    assert rows["svd"]["accuracy (%)"] == "60.0"


def test_runs_of_different_numbers_of_questions_share_no_interval(tmp_path):
    study(tmp_path)
    result = record.read(tmp_path / "1_svd")
    result.metrics |= {"test_answers_judged": 100, "base_test_accuracy": 0.2}
    record.write(tmp_path / "1_svd", result)
    found = accuracy_of(next(arm for arm in analyse(tmp_path).arms if arm.name == "svd"))
    assert (found.questions, found.base, found.interval) == (None, None, None)
    assert found.mean == pytest.approx(0.6)


def test_where_no_run_answered_there_is_no_table_and_the_report_says_so(tmp_path):
    analysis = study(tmp_path, accuracy=False)
    assert accuracy_table(analysis) is None
    assert ACCURACY.figure(analysis) is None
    text = write_report(analysis, tmp_path / "report").read_text()
    assert "accuracy (no run measured accuracy)" in text
    assert "## Accuracy" not in text


def test_a_report_shows_accuracy_in_a_table_and_a_figure(tmp_path):
    analysis = study(tmp_path)
    text = write_report(analysis, tmp_path / "report").read_text()
    assert "## Accuracy" in text
    assert "![" in text
    assert (tmp_path / "report" / "accuracy.png").is_file()
    assert (tmp_path / "report" / "tables" / "accuracy.tex").is_file()
    figure = ACCURACY.figure(analysis)
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["the base: 10.0 %"].get_xdata()[0] == pytest.approx(10)
    assert {"a seed", "mean over seeds, and Wilson's 95 % interval"} <= lines.keys()
    drawn = [line for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())]
    dots = [sorted(line.get_xdata()) for line in drawn]
    assert dots == [pytest.approx(sorted(100 * share for share in SHARES[arm])) for arm in ("svd", "random")]
    intervals = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "|" and len(line.get_xdata()) == 2]
    assert not {line.get_ydata()[0] for line in drawn} & set(intervals), "no seed is hidden by an interval"


def test_what_the_harness_measured_has_a_column_where_it_is_there(tmp_path):
    analysis = study(tmp_path, svd=0.25)
    table = evaluations_table(analysis)
    assert table.columns == ["arm", "sums exact_match"]
    assert table.rows == [["random", "–"], ["svd", "0.2500 (n = 3)"]]
    assert "0.2500 (n = 3)" in markdown(report(analysis, [], []))
    write_report(analysis, tmp_path / "report")
    with (tmp_path / "report" / "runs.csv").open() as file:
        found = {row["run"]: row["evaluate.sums exact_match"] for row in csv.DictReader(file)}
    assert found["1_svd"] == "0.25"
    assert found["1_random"] == ""
    cards = [block for block in card(load_run(tmp_path / "1_svd")) if isinstance(block, Table)]
    assert cards[-1].rows == [["sums exact_match", "0.2500"]]


def test_without_the_harness_there_is_no_column(tmp_path):
    analysis = study(tmp_path)
    assert evaluations_table(analysis) is None
    assert not any(name.startswith("evaluate.") for name in analysis.study.runs[0].evaluations)


@pytest.mark.parametrize("broken", [{"sums": 3}, {"sums": {}}, {"sums": {"measures": {"acc": "much"}}}])
def test_an_evaluation_that_is_none_is_left_out_with_its_reason(tmp_path, broken):
    study(tmp_path)
    result = record.read(tmp_path / "1_svd")
    result.evaluations = broken
    record.write(tmp_path / "1_svd", result)
    problems = analyse(tmp_path).study.problems
    assert len(problems) == 1
    assert "was it edited by hand" in problems[0].reason


def test_a_measure_of_the_harness_that_was_not_finite_is_missing_and_costs_no_report(tmp_path):
    analysis = study(tmp_path, random=None, svd=0.5)
    assert [run.evaluations for run in analysis.arms[0].runs] == [{}] * 3
    assert [row[1] for row in evaluations_table(analysis).rows] == ["–", "0.5000 (n = 3)"]
    write_report(analysis, tmp_path / "report")
    assert card(analysis.arms[0].runs[0])
