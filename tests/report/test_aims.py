"""Aims: what a study was to reach, checked against its runs in words."""

import shutil

import pytest
from synthetic import declare as declare_study
from synthetic import make_run, make_study

from lab.errors import UsageError
from lab.report.aims import in_words
from lab.report.analysis import analyse
from lab.report.findings import headline
from lab.sweep.declaration import declare
from lab.verdict.aim import parse

BLOCK = {
    "name": "s", "question": "?", "arms": {"never": "a=1", "grow": "a=2", "short": "a=3"}, "baseline": "never",
    "margin": "1%", "seeds": [1], "learning_rates": [1e-3],
}  # fmt: skip


def test_words_name_the_arms_and_the_share():
    aim = parse("grow within 0.5% of never")
    assert (aim.arm, aim.other, aim.share) == ("grow", "never", 0.005)
    assert (parse("grow better than short").other, parse("grow better than short").share) == ("short", None)
    assert parse("rank falls").arm is None


@pytest.mark.parametrize("words", ["grow", "grow within never", "grow within x% of never", "ranks fall", ""])
def test_other_words_are_refused(words):
    with pytest.raises(UsageError, match="aims: "):
        declare(BLOCK | {"aims": [words]})


def test_an_aim_of_an_arm_that_never_was_is_refused_and_of_one_left_out_dropped():
    with pytest.raises(UsageError, match="'growth', which is no arm"):
        declare(BLOCK | {"aims": ["growth better than never"]})
    aims = {"aims": ["grow better than short", "grow within 3% of never", "rank falls"]}
    aims["contrasts"] = ["grow/short", "grow"]
    assert declare(BLOCK | aims | {"sizes": {"quick": {"arms": ["never", "grow"]}}}, "quick").aims == aims["aims"][1:]


@pytest.mark.parametrize("words", ["grow better than short", "short within 1% of grow"])
def test_an_aim_between_arms_that_nothing_compares_is_refused_unless_the_command_line_left_the_baseline_out(words):
    with pytest.raises(UsageError, match=r"no contrast, and neither is the baseline; add '(grow/short|short/grow)'"):
        declare(BLOCK | {"aims": [words]})
    for contrast in ("grow/short", "short/grow"):
        assert declare(BLOCK | {"aims": [words], "contrasts": [contrast]}).aims == [words]
    more = BLOCK | {"arms": BLOCK["arms"] | {"long": "a=4"}, "aims": [words], "contrasts": ["grow/short"]}
    assert declare(more, given={"a": ["4", "2", "3"]}).baseline == "long"


def test_aims_are_reached_or_missed_by_the_means_with_the_verdict_beside(tmp_path):
    """Means apart by 2.5 and 0.5 % of a loss of 2.0; pairs share their noise but for 0.0001."""
    aims = ["near within 1% of never", "far within 1% of never", "near better than far", "never better than near"]
    aims += ["far better than near", "a layer switches"]
    make_study(tmp_path, {"never": 2.0, "far": 2.05, "near": 2.01}, noise=1e-4, aims=aims)
    said = in_words(analyse(tmp_path))
    assert said[0].startswith("near within 1% of never: reached by the means, 0.50 % worse over 6 pairs")
    assert "equivalent" in said[0]
    assert said[1].startswith("far within 1% of never: missed by the means, 2.5")
    assert "never better" in said[1]
    assert said[2] == (
        "near better than far: not checked, since the two are in no contrast and neither is the baseline."
    )
    assert said[3].startswith("never better than near: reached by the means, 0.5")
    assert said[5] == "a layer switches: not to be seen, since no completed run has a policy that switches."


@pytest.mark.parametrize(
    ("loss", "ends"), [(0.25, "missed by the means, 0.2500 worse"), (-0.25, "reached by the means, ")]
)
def test_a_share_of_a_mean_of_nothing_is_no_share(tmp_path, loss, ends):
    declare_study(tmp_path, {"a": [], "b": []}, "a", seeds=[1, 2], aims=["b within 1% of a"], margin=0.1)
    for seed in (1, 2):
        for arm, value in (("a", 0.0), ("b", loss)):
            make_run(tmp_path / f"{arm}{seed}", arm=arm, seed=seed, loss=value)
    (said,) = in_words(analyse(tmp_path))
    assert said.startswith(f"b within 1% of a: {ends}")


def test_one_is_said_in_the_singular(tmp_path):
    declare_study(tmp_path, {"a": [], "b": []}, "a", seeds=[1], aims=["b within 1% of a"], margin=0.1)
    for arm in ("a", "b"):
        make_run(tmp_path / arm, arm=arm, seed=1, loss=2.0)
    (said,) = in_words(analyse(tmp_path))
    assert "over 1 pair (" in said
    assert headline(analyse(tmp_path))[0].startswith("2 runs were read: 2 completed.")
    shutil.rmtree(tmp_path / "b")
    assert headline(analyse(tmp_path))[0].startswith("1 run was read: 1 completed.")
