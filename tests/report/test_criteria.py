"""The criteria of seed 001's phases on runs that meet them, miss them, or cannot tell."""

import json

import pytest
from synthetic import declare, make_run

from lab.record import read, run_files, write
from lab.report.analysis import analyse
from lab.report.criteria import PHASES, criteria_table

LAYERS = ("q_proj", "k_proj")


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def switch(layer, to, rank, reason="gradient_clobbering_risk"):
    return {
        "step": 20,
        "layer": layer,
        "from": "full" if to != "full" else "delta",
        "to": to,
        "rank": rank,
        "reason": reason,
    }


def decision(**holds):
    clauses = [{"name": name, "op": ">", "value": 1.0, "limit": 0.5, "holds": held} for name, held in holds.items()]
    return {"step": 20, "layer": "q_proj", "action": "none", "clauses": clauses}


def study(folder, phase, losses, files=None, **per_run):
    """One seed of each arm, at these bits per byte; `files` of the arm that may switch."""
    declare(folder, {arm: [f"svd_policy={arm}"] for arm in losses}, "never", seeds=[1], twin_seeds=[], name=phase)
    for i, (arm, bpb) in enumerate(losses.items()):
        path = folder / f"{i}_verdict_{arm}"
        make_run(path, arm=arm, seed=1, loss=bpb, study=phase, metrics={"val_bpb": bpb}, **per_run.get(arm, {}))
        for name, rows in (files or {}).items() if arm != "never" else ():
            lines(path / name, rows)
    return criteria_table(analyse(folder))


def found(table):
    return {row[0]: (row[2], row[3]) for row in table.rows}


def test_a_run_that_does_what_the_seed_hoped_meets_every_criterion_that_can_be_measured(tmp_path):
    moves = [switch("q_proj", "delta", 200), switch("q_proj", "delta", 160), switch("k_proj", "delta", 90)]
    moves += [switch("k_proj", "full", None, "reconstruction_unsafe")]
    seen = [decision(principal_danger=True, angle_stable=False), decision(principal_danger=False), decision()]
    files = {"switches.jsonl": moves, "decisions.jsonl": seen}
    table = study(tmp_path, "phase2", {"never": 2.0, "phase1": 2.09}, files)
    said = found(table)
    assert [row[0] for row in table.rows] == list(PHASES["phase2"])
    assert [word for word, _ in said.values()] == ["met", "met", "not measurable", "met", "met", "met"]
    assert said["layers switch, for the reasons of their policy"][1] == (
        "2 layers, runs: 1 (gradient_clobbering_risk); 1 returns to full"
    )
    assert "+4.50% of never's (seeds: 1)" in said["validation within 5 % of the baseline"][1]
    assert said["at least one clobbering detected"][1] == "1 of 3 decisions saw one"
    assert said["rank falls somewhere"][1].startswith("1 times lower")


def test_a_run_that_switches_nothing_misses_what_asks_for_it(tmp_path):
    files = {
        "decisions.jsonl": [decision(attack_z=True, attack_lift=False), decision(attack_z=False, attack_lift=True)]
    }
    said = found(study(tmp_path, "phase2", {"never": 2.0, "auto": 2.11}, files))
    assert said["layers switch, for the reasons of their policy"] == ("not met", "no layer switched (runs: 1)")
    assert said["validation within 5 % of the baseline"][0] == "not met"
    assert said["at least one clobbering detected"] == ("not met", "0 of 2 decisions saw one")
    assert said["rank falls somewhere"][0] == "not met"


def test_what_a_policy_does_not_test_or_no_run_measured_is_not_measurable(tmp_path):
    said = found(
        study(tmp_path / "a", "phase2", {"never": 2.0, "grow": 2.0}, {"decisions.jsonl": [decision(loss_rise=True)]})
    )
    assert said["at least one clobbering detected"] == ("not measurable", "its policy tests no attack")
    said = found(study(tmp_path / "b", "phase2", {"never": 2.0, "auto": 2.0}, auto={"status": "diverged"}))
    assert {word for word, _ in said.values()} == {"not measurable"}


@pytest.mark.parametrize(("seconds", "word"), [(41.0, "met"), (60.0, "not met")])
def test_phase_3_asks_for_3_percent_core_and_time(tmp_path, seconds, word):
    said = found(study(tmp_path, "phase3", {"never": 2.0, "auto": 2.07}, auto={"seconds": seconds}))
    assert list(said) == list(PHASES["phase3"])
    assert said["validation within 3 % of the baseline"][0] == "not met"
    assert said["CORE at least the baseline's"][0] == "not measurable"
    assert said["time competitive"][0] == word


def test_what_a_damaged_file_would_tell_is_not_measurable_and_the_report_goes_on(tmp_path):
    rows = [switch("q_proj", "delta", 200)]
    files = {"switches.jsonl": rows, "decisions.jsonl": [decision(principal_danger=True)]}
    study(tmp_path, "phase2", {"never": 2.0, "auto": 2.0}, files)
    run = tmp_path / "1_verdict_auto"
    held = read(run)
    held.files = run_files.prefixes(run, ["switches.jsonl"])
    write(run, held)
    lines(run / "switches.jsonl", [switch("q_proj", "delta", 100)])  # as long, and not what was written
    (run / "decisions.jsonl").write_text('{"step": 20, "clau')
    said = found(criteria_table(analyse(tmp_path)))
    assert [word for word, _ in said.values()] == [
        "not measurable", "met", "not measurable", "not measurable", "not measurable", "met",
    ]  # fmt: skip
    assert "its switches are left out" in said["rank falls somewhere"][1]
    assert "its decisions are left out" in said["at least one clobbering detected"][1]


def test_the_end_of_a_fade_is_no_reason_of_the_policy(tmp_path):
    fades = [switch("q_proj", "fading", 64, "eligible"), switch("q_proj", "low_rank", 64, "faded") | {"from": "fading"}]
    said = found(study(tmp_path, "phase2", {"never": 2.0, "auto": 2.0}, {"switches.jsonl": fades}))
    assert (
        said["layers switch, for the reasons of their policy"][1] == "1 layers, runs: 1 (eligible); 0 returns to full"
    )


def test_another_study_has_no_criteria(tmp_path):
    assert study(tmp_path, "synthetic", {"never": 2.0, "auto": 2.0}) is None
