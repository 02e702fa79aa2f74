import pytest
from synthetic import make_run, make_study

from lab.report.analysis import analyse
from lab.report.document import markdown
from lab.report.findings import report
from lab.report.recommendation import step_down

SAME, WORSE, BETTER, OPEN, NONE = "equivalent", "b_better", "a_better", "inconclusive", "withheld"


@pytest.mark.parametrize(
    ("verdicts", "reference", "rank", "words"),
    [
        ({32: SAME, 16: SAME, 8: SAME, 4: WORSE}, 64, 8, "the next, rank 4, was found worse"),
        ({32: SAME, 16: OPEN, 8: SAME, 4: SAME}, 64, 32, "the next, rank 16, is undecided"),
        ({32: SAME, 16: WORSE, 8: SAME}, 64, 32, "the next, rank 16, was found worse"),  # an equivalence by luck
        ({32: SAME, 16: NONE, 8: SAME}, 64, 32, "the next, rank 16, has no verdict"),
        ({32: WORSE, 16: WORSE}, 64, 64, "the next, rank 32, was found worse"),
        ({32: OPEN, 16: SAME}, 64, None, "rank 32 against 64 is undecided"),
        ({32: NONE}, 64, None, "has no verdict"),
        ({32: SAME, 16: SAME}, 64, 16, "no smaller one was judged"),
        ({32: SAME, 16: BETTER, 8: SAME}, 64, 16, "better than rank 64; no smaller rank was compared with it"),
        ({}, 64, None, "no rank was judged"),
        # the reference in the middle: a larger rank must not pay
        ({64: SAME, 32: WORSE, 8: SAME, 4: WORSE}, 16, 8, "every judged rank from 16 down to it"),
        ({64: BETTER, 8: SAME}, 16, 64, "rank 64: it was found better than rank 16"),
        ({64: OPEN, 8: SAME}, 16, None, "rank 64 against 16 is undecided"),
    ],
)
def test_a_rank_is_enough_as_far_as_every_step_down_is_equivalent(verdicts, reference, rank, words):
    found, why = step_down(verdicts, reference)
    assert found == rank
    assert words in why
    assert ("enough among the LoRA ranks tried" in why) == (rank is not None and "better" not in why)


def sweep(path, full, **fields):
    """Ranks that level off at 8, and full fine-tuning at a mean of its own."""
    means = {"r64": 2.0, "r4": 2.4, "r8": 2.0, "r16": 2.0, "full": full}
    ranks = {arm: {"rank": int(arm[1:]) if arm != "full" else None} for arm in means}
    make_study(path, means, noise=0.004, tuned=False, per_arm=ranks, contrasts=["r4", "r8", "r16"], **fields)
    return markdown(report(analyse(path), [], [])).split("Recommended: ")[1].split("\n")[0]


def test_an_enough_rank_stands_beside_what_is_better_than_all_of_them(tmp_path):
    text = sweep(tmp_path / "better", 1.62)
    assert text.startswith("rank 8, enough among the LoRA ranks tried")
    assert "full, described and not judged, is better than r64 by 0.3" in text
    assert "more than the margin of ±0.0" in text
    assert "full" not in sweep(tmp_path / "inside the margin", 1.99)
    assert "full" not in sweep(tmp_path / "worse", 2.4)


def test_a_full_arm_that_lost_seeds_is_said_to_have(tmp_path):
    make_run(tmp_path / "0_full", arm="full", seed=7, loss=9.0, status="diverged", rank=None)
    assert "full diverged on 1 of 7 seeds (7)" in sweep(tmp_path, 1.62)
