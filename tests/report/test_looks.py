"""Reports of studies that refine rates and take seeds one at a time: the planner's replay, and its words."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from driven import BASE, study_dir
from matplotlib import rc_context

from lab.errors import UsageError
from lab.record import read, write
from lab.record.study import AA, read_study
from lab.report.analysis import analyse
from lab.report.calibration import calibration, interval
from lab.report.decision import decision
from lab.report.figure import style
from lab.report.figure.curves import learning_rates
from lab.report.findings import headline
from lab.report.jobs import jobs_of
from lab.report.looks_tables import tuning_table
from lab.report.pair import analyse_pair
from lab.report.render import write_report
from lab.report.sentences import aa_paragraph, sentence
from lab.report.study import load_study
from lab.sweep.planner import plan
from lab.sweep.runs import scan

KEPT = {"metric": "equal_loss_forgetting", "selection_metric": "equal_loss_forgetting", "margin": 0.05}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return study_dir(tmp_path_factory.mktemp("study"))


def test_the_report_and_the_planner_agree_on_every_rate_and_on_the_margin(whole):
    study = read_study(whole)
    end = plan(study, scan(whole, study)[0])
    analysis = analyse(whole)
    assert end.finished
    assert {arm.name: arm.tuned for arm in (*analysis.arms, analysis.again)} == end.tuned
    assert analysis.judgement.margin == end.margin == study.margin_value == pytest.approx(0.05 * (BASE - 2), rel=0.01)


def test_verdicts_are_those_of_the_looks_with_the_seeds_each_took(whole):
    rows = {row.arm_a: row for row in analyse(whole).contrasts}
    assert rows["near"].verdict == "equivalent"
    assert rows["better"].verdict == "a_better"
    assert {row.looked.judged.stopped_because for row in rows.values()} == {"equivalence", "difference"}
    for row in rows.values():
        assert 4 <= row.statistics.pairs < 12
        assert row.ci_level == pytest.approx(0.9912, abs=2e-4), "sequential.md: 0.0088 at a horizon of 20"
        assert row.row()["looks"] == row.statistics.pairs - 3
    assert "better is better than random, each at its own best learning rate (0.0008 and 0.001)" in sentence(
        rows["better"]
    )


def test_the_a_a_arm_is_judged_and_counts_in_no_summary(whole):
    analysis = analyse(whole)
    assert analysis.aa.kind == "aa"
    assert analysis.aa.verdict == "equivalent"
    assert AA not in [arm.name for arm in analysis.arms]
    assert "came out no different from itself" in aa_paragraph(analysis)
    assert "of 2 judged arms" in headline(analysis)[0]


def test_a_difference_that_the_search_does_not_clear_is_said_at_the_rates_tried(tmp_path):
    """Curvature 200 nats per decade², so that a hundredth of a decade is a hundredth of a nat."""
    arms = {"random": "init=random", "better": "init=pissa"}
    study_dir(tmp_path, arms=arms, margin=0.004, curvature=200.0, effect={"better": -0.012}, noise=0.002)
    (row,) = analyse(tmp_path).contrasts
    assert row.verdict == "a_better"
    assert not row.looked.judged.clear, "what tuning the loser may have cost is as much"
    assert "better is better than random at the rates tried" in sentence(row)
    assert decision(analyse(tmp_path))["contrasts"][0]["rates"] == "at the rates tried"


def test_an_arm_that_lost_a_seed_is_not_called_better(tmp_path):
    study_dir(tmp_path, diverged={("better", 2)})
    row = next(row for row in analyse(tmp_path).contrasts if row.arm_a == "better")
    assert row.verdict == "withheld"
    assert "better diverged on 1 of" in sentence(row)


@pytest.mark.parametrize("left", ["running", None, "failed"])
@pytest.mark.parametrize(
    "job",
    [
        "tune_random_lr=0.003_seed=0",  # beside the baseline's best: every other arm starts from the baseline's
        "tune_better_lr=0.00178_seed=0",  # of a refinement
        "tune_aa_lr=0.001_seed=1000",
        "verdict_random_*_seed=2",
        "verdict_near_*_seed=5",
        "verdict_aa_*_seed=1003",
    ],
)
def test_what_the_planner_gave_up_is_lost_to_the_report_too(tmp_path, job, left):
    """Killed twice: by the kernel or a time limit in its midst (an interrupted run), or before it wrote a record."""
    ends = {}
    for name, how in (("killed", left), ("failed", "failed")):
        (tmp_path / name).mkdir()
        study_dir(tmp_path / name, killed={job: how})
        study, analysis = read_study(tmp_path / name), analyse(tmp_path / name)
        end = plan(study, scan(tmp_path / name, study)[0], attempts=dict.fromkeys(study.jobs, 2))
        assert end.finished
        assert len(end.given_up) <= 1, "none once the contrast it was for is decided"
        assert {arm.name: arm.tuned for arm in (*analysis.arms, analysis.again)} == end.tuned
        ends[name] = [
            (row.arm_a, row.verdict, row.statistics, row.looked) for row in (*analysis.contrasts, analysis.aa)
        ]
    assert ends["killed"] == ends["failed"], "to the planner they are the same"
    assert not {"withheld"} & {verdict for _, verdict, *_ in ends["killed"]}


def test_a_job_that_was_killed_and_may_still_go_on_is_no_lost_seed(tmp_path):
    """Nothing came after it: the study itself was cut short, or its planner is about to send the job again."""
    study_dir(tmp_path, most=32, killed={"verdict_near_*_seed=3": "running"})
    study = read_study(tmp_path)
    last = max(study.jobs.values(), key=lambda entry: int(entry["directory"].split("_")[0]))
    assert "verdict_near" in last["directory"]
    assert jobs_of(study, load_study(tmp_path).runs).given_up == frozenset()


@pytest.mark.parametrize("most", [3, 12, 24, 31])
def test_a_study_cut_short_is_reported_as_undecided(tmp_path, most):
    study_dir(tmp_path, most=most)
    analysis = analyse(tmp_path)
    write_report(analysis, tmp_path / "report")
    assert all(row.verdict in ("inconclusive", "withheld", "not_judged") for row in analysis.contrasts)
    assert decision(analysis)["recommended"] == []


def test_a_margin_replaced_after_the_runs_is_looked_at_as_the_seeds_were_and_said(whole):
    analysis = analyse(whole, margin="0.6")
    assert {row.verdict for row in analysis.contrasts} == {"equivalent"}, "the effect of 0.4 lies inside it"
    assert all(row.looked.horizon == 20 for row in analysis.contrasts)
    assert not analysis.judgement.declared


def test_seeds_that_were_looked_at_earn_no_verdict_of_a_fixed_number(whole, tmp_path):
    """Without its tuning runs the looks at an arm cannot be replayed."""
    copied = shutil.copytree(whole, tmp_path / "study")
    for path in copied.glob("*_tune_better_*"):
        shutil.rmtree(path)
    rows = {row.arm_a: row for row in analyse(copied).contrasts}
    assert (rows["better"].verdict, rows["better"].looked) == ("withheld", None)
    assert "its learning rate is not known yet" in sentence(rows["better"])


def test_a_seed_that_the_baseline_lost_is_not_made_up_for_by_a_later_one(tmp_path):
    study_dir(tmp_path, diverged={("random", 2)})
    ended = max(row.looked.judged.seeds for row in analyse(tmp_path).contrasts)
    for arm in ("random", "near", "better"):  # someone runs a seed more, whatever the looks had said
        last = read(next(tmp_path.glob(f"*_verdict_{arm}_*_seed=1")))
        last.seed = last.data_seed = ended + 1
        (tmp_path / f"99_{arm}").mkdir()
        write(tmp_path / f"99_{arm}", last)
    for row in analyse(tmp_path).contrasts:
        own = row.looked.judged
        assert row.statistics.pairs == len(row.differences) == own.seeds - 1 == own.contrast.pairs
        assert row.statistics.mean == pytest.approx(own.contrast.mean)


def test_the_files_say_what_may_be_said(whole, tmp_path):
    analysis = analyse(whole)
    write_report(analysis, tmp_path)
    text = (tmp_path / "README.md").read_text().replace("\\", "")
    assert "Learning rates, chosen by val loss (nats per token) of tuning seeds" in text
    assert "P* and Q* hold for any stopping" in " ".join(text.split())
    made = json.loads((tmp_path / "decision.json").read_text())
    assert made["recommended"] == ["better"]
    assert made["learning_rates"] == {"better": 0.0008}
    assert len(made["licence"]["may_be_said"]) == 2
    rows = json.loads((tmp_path / "comparisons.json").read_text())
    judged = [row for row in rows if row["kind"] == "contrast"]
    assert all(row["horizon"] == 20 and row["stopped_because"] and row["tuning_regret"] > 0 for row in judged)
    assert "looked at after each from the fourth" in " ".join((tmp_path / "methods.md").read_text().split())


@pytest.mark.parametrize("refine", [True, False])
def test_a_rate_that_only_never_reached_the_loss_is_not_said_to_have_diverged(tmp_path, refine):
    study_dir(tmp_path, reached=2e-3, refine=refine, **KEPT)
    analysis = analyse(tmp_path)
    table = tuning_table(analysis)
    assert "chosen by equal loss forgetting (nats per token) of tuning seeds" in table.caption
    assert any("0.01: came to no value" in row[-1] for row in table.rows)
    assert not any("diverged" in cell for row in table.rows for cell in row)
    with rc_context(style.RC):
        (legend,) = learning_rates(analysis).legends
    said = [text.get_text() for text in legend.get_texts()]
    assert "a seed came to no value" in said
    assert "a seed diverged" not in said


@pytest.mark.parametrize("refine", [True, False])
def test_an_arm_none_of_whose_rates_reached_the_loss_is_not_said_to_have_diverged(tmp_path, refine):
    study_dir(tmp_path, reached=0.0, refine=refine, **KEPT)
    study = read_study(tmp_path)
    notes = plan(study, scan(tmp_path, study)[0]).notes
    assert "random: every learning rate came to no value, so it gets no verdict" in notes
    assert not any("diverged" in note for note in notes)


def test_calibration_counts_the_baselines_that_came_out_different(whole):
    line = [sys.executable, "-m", "lab.report", "--calibration"]
    done = subprocess.run([*line, str(whole), str(whole)], capture_output=True, text=True, check=True)
    assert "0 of 2 baselines came out different from themselves: 0 %" in " ".join(done.stdout.split())
    wrong = subprocess.run([*line, str(whole), "--to", "x"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "takes nothing else" in wrong.stderr
    none = subprocess.run([*line, str(whole.parent / "nothing")], capture_output=True, text=True, check=False)
    assert none.returncode == 2
    assert "Traceback" not in none.stderr


def test_a_baseline_that_is_itself_to_the_last_bit_is_said_so_and_calibrates_nothing(whole, tmp_path):
    """Full fine-tuning without dropout draws nothing but its data order, which the two arms share."""
    study_dir(tmp_path, arms={"random": "init=random", "other": "init=pissa"}, noise=0.0)
    said = aa_paragraph(analyse(tmp_path))
    assert "pairs are the same to the last bit" in said
    assert "calibrates nothing" in said
    blocks = [str(block) for block in calibration([whole, tmp_path])]
    assert any("0 of 1 baselines" in block for block in blocks)
    assert any("The same to the last bit, which calibrates nothing" in block for block in blocks)
    with pytest.raises(UsageError, match="no A/A arm was judged"):
        calibration([tmp_path])


def test_the_interval_of_a_share_is_clopper_and_pearsons():
    from scipy.stats import binomtest

    for count, of in ((0, 5), (2, 7), (5, 5)):
        exact = binomtest(count, of).proportion_ci(method="exact")
        assert interval(count, of) == pytest.approx((exact.low, exact.high))


def test_the_declared_contrast_turned_round_keeps_its_looks_and_any_other_is_withheld(whole):
    declared = {row.arm_a: row for row in analyse(whole).contrasts}
    for name, turned in (("better", "b_better"), ("near", "equivalent")):
        analysis = analyse(whole, baseline=name)
        rows = {row.arm_a: row for row in analysis.contrasts}
        row, before = rows["random"], declared[name]
        s, was = row.statistics, before.statistics
        assert row.verdict == turned
        assert (s.mean, s.ci_low, s.ci_high) == pytest.approx((-was.mean, -was.ci_high, -was.ci_low))
        assert row.looked.turned() == before.looked
        assert (row.p_adjusted, row.p_equivalence_adjusted) == (before.p_adjusted, before.p_equivalence_adjusted)
        (other,) = (row for arm, row in rows.items() if arm != "random")
        assert (other.verdict, other.looked) == ("withheld", None)
        assert "its seeds were taken one at a time" in other.reason
        assert (other.statistics.p_value, other.statistics.p_equivalence, other.statistics.ci_low) == (None, None, None)
        assert analysis.aa is None
        assert not analysis.judgement.declared


def test_two_studies_that_took_their_seeds_one_at_a_time_are_described_and_not_judged(whole, tmp_path):
    other = study_dir(tmp_path, effect={"better": -0.4, "near": 0.4}, name="later")
    analysis = analyse_pair(load_study(whole), load_study(other))
    assert len(analysis.contrasts) == 3, "of the arms both have; the A/A arm is the baseline once more"
    assert not any(AA in (row.arm_a.split()[-1], row.arm_b.split()[-1]) for row in analysis.comparisons)
    for row in analysis.contrasts:
        assert row.statistics.mean is not None
        assert (row.verdict, row.statistics.p_value) == ("withheld", None)
        assert "taken one at a time" in sentence(row)


def test_a_baseline_that_nothing_was_decided_about_is_not_said_to_be_no_different(whole):
    """Undecided and withheld rows are put in place of the equivalence that this study came to."""
    analysis = analyse(whole)
    said = {}
    for verdict in ("a_better", "b_better", "equivalent", "inconclusive", "withheld"):
        row = replace(analysis.aa, verdict=verdict)
        others = [each for each in analysis.comparisons if each.kind != "aa"]
        said[verdict] = aa_paragraph(replace(analysis, comparisons=(row, *others))).split(" it came out ")[1]
    starts = {verdict: text.split(".")[0] for verdict, text in said.items()}
    assert starts == {
        "a_better": "different from itself",
        "b_better": "different from itself",
        "equivalent": "no different from itself",
        "inconclusive": "undecided against itself",
        "withheld": "without a verdict",
    }


def test_calibration_counts_what_was_decided_apart_from_what_was_not(whole, tmp_path, monkeypatch):
    analysis, verdicts = analyse(whole), []

    def analysed(study):
        row = replace(analysis.aa, verdict=verdicts.pop())
        return replace(analysis, comparisons=(row,))

    monkeypatch.setattr("lab.report.calibration.analysis_of", analysed)
    verdicts += ["a_better", "equivalent", "equivalent", "inconclusive", "withheld"]
    table, summary = calibration([whole] * 5)[:2]
    assert summary.text.startswith("1 of 4 baselines came out different from themselves: 25 %, 95 % interval 1 to 81 %")
    assert "The others: 2 no different from itself, 1 undecided against itself. Not counted: 1 without a verdict." in (
        summary.text
    )
    assert [row[-1] for row in table.rows] == [
        *("without a verdict", "undecided against itself", "no different from itself", "no different from itself"),
        "better than itself",
    ]
    verdicts += ["withheld"]
    assert calibration([whole])[1].text == "None of 1 baselines has a verdict against itself."
