"""Contrasts declared as pairs, at rates that are only the best of those tried: judged as a hand computation judges."""

import json

import numpy as np
import pytest
from driven import study_dir
from scipy.stats import ttest_1samp, ttest_rel

from lab.errors import UsageError
from lab.record.study import AA, STUDY, read_study
from lab.report.analysis import analyse
from lab.report.decision import decision
from lab.report.findings import headline
from lab.report.render import write_report
from lab.report.sentences import sentence
from lab.verdict import null_table

ARMS = {"never": "init=a", "short": "init=b", "grow": "init=c", "auto": "init=d", "random": "init=e"}
PAIRS = ["grow/never", "grow/short", "auto/never"]
EFFECT = {"short": 0.09, "grow": 0.002, "auto": 0.03}  # nats; half of it in bits per byte, where the margin is 0.005
RATES = [5e-4, 1e-3, 2e-3]
HORIZON = 12


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return study_dir(
        tmp_path_factory.mktemp("pairs"), arms=ARMS, baseline="never", contrasts=PAIRS, effect=EFFECT, noise=0.002,
        metric="val_bpb", selection_metric="val_bpb", margin="0.5%", rate="optim.matrix_lr", refine=False,
        learning_rates={arm: RATES if arm != "random" else [1e-3] for arm in ARMS}, described_seeds=2,
        seeds=list(range(1, HORIZON + 1)), horizon=HORIZON,
    )  # fmt: skip


def values(study, arm):
    """The judged metric by data seed, read from the records alone."""
    runs = [json.loads(path.read_text()) for path in study.glob(f"*_verdict_{arm}_*/result.json")]
    return {run["data_seed"]: run["metrics"]["val_bpb"] for run in runs}


def looks(study, contrast, margin):
    """(P*, Q*) after each look: scipy's paired t and TOST, the smallest so far, and the chance of so small a one."""
    one, other = (values(study, arm) for arm in contrast.split("/"))
    seeds = sorted(set(one) & set(other))
    a, b = np.array([one[seed] for seed in seeds]), np.array([other[seed] for seed in seeds])
    p, q = [], []
    for n in range(4, len(seeds) + 1):
        d = a[:n] - b[:n]
        p.append(ttest_rel(a[:n], b[:n]).pvalue)
        q.append(max(ttest_1samp(d, s * margin, alternative=w).pvalue for s, w in ((-1, "greater"), (1, "less"))))
    two, one_sided = null_table.load(2, HORIZON), null_table.load(1, HORIZON)
    return two.chance(np.minimum.accumulate(p)), one_sided.chance(np.minimum.accumulate(q))


def holm(p):
    order = np.argsort(p)
    raised = np.maximum.accumulate([min(1.0, p[i] * (len(p) - k)) for k, i in enumerate(order)])
    return {int(i): float(raised[k]) for k, i in enumerate(order)}


def test_a_pair_is_judged_as_a_computation_by_hand_judges_it(study):
    margin = read_study(study).margin_value
    rows = {f"{row.arm_a}/{row.arm_b}": row for row in analyse(study).contrasts}
    assert list(rows) == PAIRS
    found = {name: looks(study, name, margin) for name in PAIRS}
    ended = {name: rows[name].looked.judged.seeds for name in PAIRS}
    for names, which in ((PAIRS, 0), (PAIRS, 1)):
        adjusted = holm([float(found[name][which][ended[name] - 4]) for name in names])
        for i, name in enumerate(names):
            got = (rows[name].p_adjusted, rows[name].p_equivalence_adjusted)[which]
            assert got == pytest.approx(adjusted[i], rel=1e-9), "the same formulas in another order"
    for name, row in rows.items():
        p, q = row.p_adjusted, row.p_equivalence_adjusted
        by_hand = "equivalent" if q <= 0.05 else ("a_better" if row.statistics.mean < 0 else "b_better")
        assert row.verdict == (by_hand if min(p, q) <= 0.05 else "inconclusive"), name
    assert [row.verdict for row in rows.values()] == ["equivalent", "a_better", "b_better"]


def test_the_margin_is_a_share_of_the_baselines_value_on_the_tuning_seed(study):
    tuned = [json.loads(path.read_text()) for path in study.glob("*_tune_never_*/result.json")]
    best = min(run["metrics"]["val_bpb"] for run in tuned)
    assert read_study(study).margin_value == pytest.approx(0.005 * best)


def test_no_rate_is_refined_and_every_verdict_says_so(study):
    assert len(list(study.glob("*_tune_*"))) == 3 * 5, "three rates of never, short, grow, auto and the A/A arm"
    analysis = analyse(study)
    assert {arm.tuned.rule for arm in analysis.arms} == {"grid", "declared"}
    tuned = {arm.name: arm.tuned for arm in analysis.arms}
    assert all((row.looked.arm, row.looked.other) == (tuned[row.arm_a], tuned[row.arm_b]) for row in analysis.contrasts)
    decided = [row for row in analysis.contrasts if row.verdict in ("a_better", "b_better", "equivalent")]
    assert decided
    assert all("at the rates tried" in sentence(row) for row in decided)
    assert not any("its own best learning rate" in sentence(row) for row in analysis.contrasts)


def test_a_described_arm_takes_the_seeds_it_was_given_and_a_judged_one_those_of_its_contrasts(study):
    counts = {arm: len(values(study, arm)) for arm in ARMS}
    rows = {f"{row.arm_a}/{row.arm_b}": row.looked.judged.seeds for row in analyse(study).contrasts}
    assert counts["random"] == 2
    assert counts["short"] == rows["grow/short"]
    assert counts["grow"] == max(rows["grow/never"], rows["grow/short"])
    assert counts["never"] >= max(rows["grow/never"], rows["auto/never"])


def test_the_baseline_against_itself_comes_out_no_different(study):
    aa = analyse(study).aa
    assert aa.looked is not None
    assert aa.verdict not in ("a_better", "b_better")


def test_an_arm_that_only_stands_on_the_other_side_of_a_pair_is_compared_with_the_baseline_as_well(study):
    described = {(row.arm_a, row.arm_b) for row in analyse(study).described}
    assert described == {("short", "never"), ("random", "never")}


def test_the_report_names_both_arms_of_a_pair(study, tmp_path):
    analysis = analyse(study)
    write_report(analysis, tmp_path)
    text = " ".join((tmp_path / "README.md").read_text().replace("\\", "").split())
    assert "Of 3 contrasts" in headline(analysis)[0]
    assert "grow is better than short at the rates tried" in text
    methods = " ".join((tmp_path / "methods.md").read_text().replace("\\", "").split())
    assert "Compared were grow with never, grow with short, auto with never by val bpb" in methods
    assert "nothing was refined" in methods
    assert {(row["arm"], row["against"]) for row in decision(analysis)["contrasts"]} == {
        tuple(pair.split("/")) for pair in PAIRS
    }
    header, *rows = (tmp_path / "runs.csv").read_text().splitlines()
    rates = {row.split(",")[header.split(",").index("learning_rate")] for row in rows}
    assert rates == {"0.0005", "0.001", "0.002"}


def test_what_beats_the_baseline_and_loses_to_another_arm_is_not_recommended(tmp_path):
    arms = {"never": "init=a", "short": "init=b", "grow": "init=c"}
    rates = {arm: [1e-3] for arm in arms}
    path = study_dir(
        tmp_path, arms=arms, baseline="never", contrasts=["grow/never", "short/grow"], learning_rates=rates,
        effect={"grow": -0.2, "short": -0.4}, margin=0.01, noise=0.01, aa=False,
    )  # fmt: skip
    analysis = analyse(path)
    assert [row.verdict for row in analysis.contrasts] == ["a_better", "a_better"]
    assert decision(analysis)["recommended"] == []


@pytest.mark.parametrize(
    ("contrasts", "effect", "recommended", "why"),
    [
        (["never/grow"], {"grow": -0.2}, ["grow"], "grow alone was found better than never"),
        (["never/grow"], {"grow": 0.2}, ["never"], "no judged arm was found better than never"),
        (["never/grow", "short"], {"grow": -0.2, "short": -0.4}, ["grow", "short"], "which of them is best was not"),
        (["short/grow"], {"short": -0.2}, [], "no contrast is with never"),
        (["short/grow", "grow/never"], {"short": -0.2}, [], "no contrast with never was decided"),
    ],
)
def test_what_is_recommended_was_compared_with_the_baseline_on_either_side(
    tmp_path, contrasts, effect, recommended, why
):
    """The margin of 1e-5 lets nothing be equivalent: noise of 0.01 nats is a thousand times that."""
    arms = {"never": "init=a", "short": "init=b", "grow": "init=c"}
    path = study_dir(
        tmp_path, arms=arms, baseline="never", contrasts=contrasts, learning_rates={arm: [1e-3] for arm in arms},
        effect=effect, margin=1e-5, noise=0.01, aa=False,
    )  # fmt: skip
    made = decision(analyse(path))
    assert made["recommended"] == recommended
    assert why in made["because"]


def test_a_study_from_before_pairs_is_read_as_it_was(study, tmp_path):
    raw = json.loads((study / STUDY).read_text())
    for key in ("rate", "refine", "described_seeds"):
        raw.pop(key, None)
    (tmp_path / STUDY).write_text(json.dumps(raw | {"contrasts": ["grow", "auto"]}))
    old = read_study(tmp_path)
    assert (old.rate, old.refine, old.described_seeds) == ("optim.lr", True, None)
    (tmp_path / STUDY).write_text(json.dumps(raw | {"rate": 3}))
    with pytest.raises(UsageError, match="rate is int, not text"):
        read_study(tmp_path)
    assert AA in old.arms


def test_a_described_arm_of_a_study_without_looks_lacks_no_seed_beyond_its_own(tmp_path):
    path = study_dir(
        tmp_path, arms=ARMS, baseline="never", contrasts=["grow/never"], described_seeds=1, seeds=[1, 2], margin=0.01,
        learning_rates={arm: [1e-3] for arm in ARMS},
    )  # fmt: skip
    assert analyse(path).study.missing == []
    assert {arm: len(values(path, arm)) for arm in ("grow", "random")} == {"grow": 2, "random": 1}
