"""The report of a study of forgetting: what its verdicts come to, and the curves at losses that all arms reached."""

from dataclasses import replace

import pytest
from matplotlib import rc_context
from synthetic import FORGOT, forgetting, init_comparison

from lab import record
from lab.report.analysis import analyse
from lab.report.document import Heading, Table
from lab.report.figure import style
from lab.report.figure.forgetting_curves import forgetting_curves
from lab.report.findings import report
from lab.report.forgetting import at_level, common_level, curve, curves_table, protected, thesis

SAID = "Protecting principal directions preserves what was learned (seed 001): "


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forgetting")
    forgetting(folder)
    return analyse(folder)


@pytest.mark.parametrize(
    ("slopes", "contrasts", "says"),
    [
        (FORGOT, ["guard"], "shown. At equal loss guard keeps more than never."),
        (
            FORGOT,
            ["osf"],
            "not so, within the margin: it made no difference. At equal loss osf keeps as much as never.",
        ),
        (FORGOT, ["delta"], "not so; here it preserved less. At equal loss delta keeps less than never."),
        (
            FORGOT,
            ["guard", "osf"],
            "shown for some ways of protecting them, and for the others not. At equal loss guard ",
        ),
        (
            FORGOT,
            ["guard", "osf", "delta"],
            "it depends on how they are protected. At equal loss guard keeps more than",
        ),
        (
            FORGOT,
            ["osf", "delta"],
            "not shown, and for some ways the reverse. At equal loss osf keeps as much as never; ",
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_what_the_verdicts_come_to_follows_from_them_alone(tmp_path, slopes, contrasts, says):
    forgetting(tmp_path, slopes, contrasts=contrasts)
    assert thesis(analyse(tmp_path)).startswith(SAID + says)


def test_undecided_and_withheld_verdicts_show_nothing(tmp_path):
    forgetting(tmp_path / "wide", contrasts=["osf"], margin=1e-5)
    assert thesis(analyse(tmp_path / "wide")).startswith(
        SAID + "not shown. At equal loss osf is undecided against never"
    )
    forgetting(tmp_path / "few", contrasts=["guard"], seeds=[1, 2])
    assert thesis(analyse(tmp_path / "few")).startswith(SAID + "not judged here. At equal loss guard has no verdict")


def test_an_arm_that_protected_nothing_is_no_test_of_the_thesis(tmp_path):
    study = forgetting(tmp_path, contrasts=["guard"])
    for path in tmp_path.glob("*_guard_*/result.json"):
        path.write_text(path.read_text().replace('"steps": 59', '"steps": 0'))
    assert study.contrasts == ["guard"]
    assert thesis(analyse(tmp_path)) is None


def test_a_pair_that_starts_from_zero_keeps_no_directions_and_is_no_test_of_the_thesis(tmp_path):
    """Its tail is 1: the product of 0 holds none of the weight, and all of it lies beneath what is trained."""
    forgetting(tmp_path, contrasts=["guard", "delta"])
    for path in tmp_path.glob("*_delta_*/switches.jsonl"):
        path.write_text(path.read_text().replace('"tail": 0.9', '"tail": 1.0'))
    analysis = analyse(tmp_path)
    assert thesis(analysis) == SAID + "shown. At equal loss guard keeps more than never."
    assert protected(analysis.arms[3].runs) == "7 layers frozen under a pair", "which the table still says"


def test_of_an_arm_that_was_not_judged_nothing_is_said_to_be_shown_or_not(tmp_path):
    forgetting(tmp_path, contrasts=["guard", "osf"])
    analysis = analyse(tmp_path)
    rows = [replace(row, verdict="withheld") if row.arm_a == "osf" else row for row in analysis.comparisons]
    assert thesis(replace(analysis, comparisons=tuple(rows))) == (
        SAID + "shown. At equal loss guard keeps more than never; osf has no verdict against never."
    )


@pytest.mark.parametrize("damage", ['{"step": 0, "lay', '{"step": 0, "step": 1}\n'])
def test_switches_that_cannot_be_read_leave_what_was_protected_unmeasured(tmp_path, damage):
    forgetting(tmp_path, contrasts=["delta"])
    broken = min(tmp_path.glob("*_delta_*/switches.jsonl"))
    broken.write_text(damage)
    analysis = analyse(tmp_path)
    assert curves_table(analysis).rows[3][-1] == "not measurable"
    assert thesis(analysis) is None


def test_what_was_protected_is_read_from_the_records(analysed):
    never, guard, osf, delta = (arm.runs for arm in analysed.arms)
    assert protected(never) is None
    assert protected(guard) == "7 layers guarded, 50% of the updates' energy taken off"
    assert protected(osf) == "7 layers by OSF, up to 8.0% of a change's energy on what they keep"
    assert protected(delta) == "7 layers frozen under a pair"


def test_forgetting_is_read_where_every_run_of_every_arm_came_down_to(analysed):
    base, lowest = common_level(analysed.arms)
    ends = [run.value("val_loss") for arm in analysed.arms for run in arm.runs]
    assert (base, lowest) == (pytest.approx(3.02), max(ends)), "the highest of their ends: their losses fall"
    for arm in analysed.arms:
        noise = [run.value("forgetting") - FORGOT[arm.name] * (3.02 - run.value("val_loss")) for run in arm.runs]
        expected = [FORGOT[arm.name] * (3.02 - 2.6) + each for each in noise]
        assert at_level(arm, 2.6) == pytest.approx(expected, abs=1e-12)
        assert len(at_level(arm, 0.5)) == 0, "no run came so far down, and nothing is drawn on"
    table = curves_table(analysed)
    assert [row[0] for row in table.rows] == list(FORGOT)
    assert table.rows[0][-1] == "nothing"
    last = {row[0]: float(row[4]) for row in table.rows}
    assert last["guard"] < last["osf"] < last["delta"]


@pytest.mark.parametrize("lowest", [0.5903 + 0.0007 * i for i in range(8)])
def test_the_run_that_set_the_lowest_level_counts_at_it(tmp_path, lowest):
    """2.4 + 1.0 * (lowest - 2.4) lies below `lowest` for some of these pairs: no run came so far down."""
    forgetting(tmp_path, seeds=[1])
    for path in sorted(tmp_path.glob("*/retention.csv")):
        path.write_text(f"step,val_loss,retention_loss\n0,2.4,4.0\n5,{lowest!r},4.25\n")
    analysis = analyse(tmp_path)
    assert {row[4] for row in curves_table(analysis).rows} == {"0.2500"}
    with rc_context(style.RC):
        lines = forgetting_curves(analysis).axes[0].lines[:-1]
    for line in lines:
        assert (line.get_xdata()[-1], line.get_ydata()[-1]) == (lowest, pytest.approx(0.25))


def test_the_report_has_the_section_where_it_was_measured_and_only_there(analysed, tmp_path):
    blocks = report(analysed, [], [])
    titles = [block.text for block in blocks if isinstance(block, Heading)]
    assert "Forgetting at equal loss" in titles
    assert any(isinstance(block, Table) and block.name == "forgetting" for block in blocks)
    init_comparison(tmp_path)
    other = report(analyse(tmp_path), [], [])
    assert "Forgetting at equal loss" not in [block.text for block in other if isinstance(block, Heading)]


def test_a_curve_that_cannot_be_read_is_left_out_and_named(tmp_path):
    forgetting(tmp_path)
    broken = next(iter(sorted(tmp_path.glob("*_guard_*seed=3"))))
    (broken / "retention.csv").write_text("step,val_loss,retention_loss\n0,three,4\n")
    analysis = analyse(tmp_path)
    assert [problem.path.name for problem in analysis.study.problems] == [broken.name]
    assert "retention.csv is not readable" in analysis.study.problems[0].reason
    assert thesis(analysis), "its record is whole and counts"


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (["0,3.0,4.0", "5,2.5,", "10,2.0,4.5"], ([3.0, 2.0], [0.0, 0.5])),
        (["0,3.0,4.0", "5,,4.25", "10,2.0,4.5"], ([3.0, 2.0], [0.0, 0.5])),
        (["0,3.0,", "5,2.5,4.25"], ([], [])),  # forgetting is above the base's
        (["0,3.0,", "5,2.5,"], ([], [])),
        (["0,,4.0", "5,,4.25"], ([], [])),
        ([], ([], [])),
    ],
)
def test_a_value_that_is_missing_shifts_no_other(tmp_path, rows, found):
    forgetting(tmp_path, seeds=[1])
    for path in sorted(tmp_path.glob("*/retention.csv")):
        path.write_text("\n".join(["step,val_loss,retention_loss", *rows, ""]))
    analysis = analyse(tmp_path)
    assert {tuple(map(tuple, curve(run))) for arm in analysis.arms for run in arm.runs} == {tuple(map(tuple, found))}
    assert (curves_table(analysis) is None) == (found == ([], []))
    with rc_context(style.RC):
        assert (forgetting_curves(analysis) is None) == (found == ([], []))


def test_a_retention_file_without_one_of_its_columns_gives_no_curve(tmp_path):
    forgetting(tmp_path, seeds=[1])
    path = min(tmp_path.glob("*/retention.csv"))
    path.write_text("step,val_loss\n0,3.0\n")
    run = next(run for run in analyse(tmp_path).study.runs if run.path == path.parent)
    assert curve(run) == ([], [])


@pytest.mark.parametrize(("metric", "word"), [("equal_loss_forgetting", "judged"), ("test_loss", "measured")])
def test_the_loss_at_which_forgetting_is_judged_is_marked_where_it_is_known(tmp_path, metric, word):
    forgetting(tmp_path, seeds=[1], metric=metric)
    with rc_context(style.RC):
        assert not any(
            "at a validation" in str(line.get_label()) for line in forgetting_curves(analyse(tmp_path)).axes[0].lines
        )
    for path in tmp_path.glob("*/result.json"):
        held = record.read(path.parent)
        held.config["evaluate"] = {"forgetting_at": 2.8}
        record.write(path.parent, held)
    with rc_context(style.RC):
        figure = forgetting_curves(analyse(tmp_path))
    (line,) = (line for line in figure.axes[0].lines if "at a validation" in str(line.get_label()))
    assert (line.get_label(), list(line.get_xdata())) == (f"{word} at a validation loss of 2.8", [2.8, 2.8])
