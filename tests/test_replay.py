"""Replay on a recorded run: the live decisions exactly, other thresholds, and what the ledger does not hold."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lab import ledger
from lab.config import CONF
from lab.record import RESULT
from lab.replay import __main__ as replay
from lab.replay import against, clause_figure
from lab.replay.suggest import suggest
from lab.svd_policy import decisions
from lab.testing import example_rows

LAYERS, K = 4, 4


def settings(name, **changes):
    return {**yaml.safe_load((CONF / "svd_policy" / f"{name}.yaml").read_text()), "k": K, **changes}


def record(run_dir, name, **changes):
    policy = settings(name, **changes)
    rows = example_rows(engine=policy["engine"], k=K, ticks=8)
    ledger.Ledger(run_dir, {"policy": policy, "targets": {}}).append(rows)
    decisions.append(run_dir, decisions.decide_all(rows, replay.make_policy(policy)))
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("phase1")
    record(run_dir, "phase1")
    return run_dir


def say(capsys, *arguments):
    replay.main([str(argument) for argument in arguments])
    return " ".join(capsys.readouterr().out.split())


def refusal(*arguments):
    with pytest.raises(SystemExit) as stopped:
        replay.main([str(argument) for argument in arguments])
    return str(stopped.value)


def test_the_live_thresholds_reproduce_the_decisions_exactly(run, capsys):
    said = say(capsys, run)
    assert f"reproduces all {8 * LAYERS} decisions of decisions.jsonl exactly." in said
    assert "what was in the way" in said


def test_a_changed_decision_is_found(run, tmp_path, capsys):
    record(tmp_path, "phase1")
    path = tmp_path / decisions.FILE
    path.write_text(path.read_text().replace("continue_current_mode", "other").replace("_unsafe", "_odd", 1))
    assert re.search(r"differs from decisions.jsonl at row \d+: step \d+, check", say(capsys, tmp_path))


def test_sweeping_one_limit_counts_first_fires(run, tmp_path, capsys):
    # clauses that always hold, so that the angle alone decides
    loose = ["svd_policy.minor_safe=0", "svd_policy.reconstruction_safe=2", "svd_policy.principal_danger=2"]
    said = say(capsys, run, *loose, "svd_policy.angle_stable=0,2", "--to", tmp_path)
    assert "never" in said
    rows = json.loads((tmp_path / "replay.json").read_text())
    assert [row["settings"] for row in rows] == [{"angle_stable": 0}, {"angle_stable": 2}]
    assert rows[0]["layers_that_fire"] == 0
    fires = {layer: fire["step"] for layer, fire in rows[1]["first_fire"].items() if fire}
    # the last layer is zero at its first tick
    assert fires == {"check.0.40x40": 40, "check.1.40x40": 40, "check.2.56x32": 40, "check.3.32x56": 60}


def test_two_swept_limits_make_a_heat_map(run, tmp_path, capsys):
    keys = ["svd_policy.angle_stable=0.1,1,2", "svd_policy.reconstruction_safe=-1,2"]
    said = say(capsys, run, *keys, "--to", tmp_path)
    assert (tmp_path / "heat_angle_stable_reconstruction_safe.png").stat().st_size > 1000
    assert len(json.loads((tmp_path / "replay.json").read_text())) == 6
    assert "optimal_lowrank_conditions cannot fire: reconstruction_safe < -1 can hold at 0 of" in said


def test_another_policy_keeps_how_the_run_was_measured(run, tmp_path, capsys):
    said = say(capsys, run, "svd_policy=phase1_lenient", "svd_policy.k=4", "--to", tmp_path)
    assert "layers fire" in said


def test_suggestions_are_overrides_that_do_what_they_say(run, tmp_path, capsys):
    said = say(capsys, run, "--suggest")
    assert {"quantile", "target", "null"} <= set(re.findall(r"(\w+) \(", said))
    target = re.search(
        r"target \(optimal_lowrank_conditions\): (\d) of 4 layers fire by step 80 .*?(svd_policy[^(]*)", said
    )
    overrides = [*re.findall(r"svd_policy\.\w+=\S+", target[2]), "svd_policy.principal_danger=2"]
    say(capsys, run, *overrides, "--to", tmp_path)
    (row,) = json.loads((tmp_path / "replay.json").read_text())
    assert sum(fire is not None and fire["step"] <= 80 for fire in row["first_fire"].values()) >= 2


@pytest.mark.parametrize("name", ["guard", "auto", "compress", "delta"])
def test_every_suggestion_can_be_set_as_it_is(name, tmp_path, capsys):
    """A guard's calm keeps its share of an attack's limit; what contradicts another limit is no suggestion."""
    low = name in ("compress", "delta")
    changes = {"warmup_steps": 0, **({"outside_low": 1.0, "outside_high": 1.4} if low else {"watch": "gradient"})}
    policy = settings(name, **changes)
    rows = [replace(row, loss=3.0, lr_factor=1.0) for row in example_rows(engine=policy["engine"], k=K, ticks=8)]
    rows = [replace(row, mode="low_rank", rank=4, outside=0.5) if low else row for row in rows]
    made = replay.make_policy(policy)
    suggestions = suggest(rows, made)
    assert suggestions
    assert all(each.limits or "not to be set so: svd_policy.outside_low" in each.says for each in suggestions)
    assert any(not each.limits for each in suggestions) == low
    for each in suggestions:
        replay.make_policy({**policy, **each.limits})
        if "attack_z" in each.limits:
            assert each.limits["calm_z"] < each.limits["attack_z"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["svd_policy.angle_stabel=0.1"],
            "svd_policy.angle_stabel is no setting of this policy; did you mean angle_stable?",
        ),
        (["svd_policy=phase"], "svd_policy=phase is no policy; did you mean phase1"),
        (["svd_policy.every_n_steps=10"], "only a new run can change it"),
        (["svd_policy.angle_stable=loose"], "'loose' is no number"),
        (["optim.lr=1"], "is no override of svd_policy"),
        (["svd_policy.k=64"], "k=64 was not recorded"),
    ],
)
def test_what_the_ledger_cannot_answer_is_refused_in_one_sentence(run, overrides, says):
    assert says in refusal(run, *overrides)


def test_a_run_without_a_ledger_is_refused(tmp_path):
    assert "holds no ledger" in refusal(tmp_path)


def test_the_seeds_rule_is_asked_of_a_run_that_only_observed(tmp_path, capsys):
    record(tmp_path, "observe")
    said = say(capsys, tmp_path, "svd_policy=phase1", "svd_policy.k=4")
    assert f"of {LAYERS} layers fire" in said
    assert "what was in the way" in said


def test_a_ledger_cut_short_replays_what_is_whole_and_says_so(tmp_path, capsys):
    record(tmp_path, "phase1")
    path = tmp_path / ledger.FOLDER / ledger.FILE
    os.truncate(path, path.stat().st_size - 50)
    said = say(capsys, tmp_path)
    assert f"cut short; replaying the {8 * LAYERS - 1} whole rows" in said
    assert f"the first {8 * LAYERS - 1} decisions agree" in said


def test_a_first_switch_is_where_exactness_ends(run):
    recorded = ledger.read(run)
    rows = [row if row.step < 60 else ledger.row_of(_diagnosis(row), **_place(row)) for row in recorded.rows]
    (note,) = replay.notes(ledger.Recorded({}, rows, cut=False))
    assert note.startswith("Exact up to step 60, where check.0.40x40 was low_rank")


def _place(row):
    return {"step": row.step, "layer": row.layer, "mode": "low_rank", "rank": 4}


def _diagnosis(row):
    from lab.spectral.diagnosis import Diagnosis

    return Diagnosis(**{field.name: getattr(row, field.name) for field in dataclasses.fields(Diagnosis)})


MINE = """
from dataclasses import dataclass
from lab.svd_policy import Decision, Reach, clause
@dataclass(frozen=True, kw_only=True)
class Mine:
    every_n_steps: int
    target_modules: str
    log_layers: int
    overlap_low: float
    @property
    def rules(self):
        return {"turned": ("overlap_low",)}
    def decide(self, row, state):
        found = clause("overlap_low", "<", row.overlap(4), self.overlap_low)
        return Decision(row.mode, "none", None, (found,), "turned" if found.holds else "still"), state
    def reach(self, row):
        return (Reach("overlap_low", "<", self.overlap_low, 0.0, self.overlap_low > 0, "unrelated directions"),)
"""


@pytest.mark.slow
def test_a_policy_of_ones_own_replays_from_its_folder_in_seconds(run, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "conf" / "svd_policy").mkdir(parents=True)
    own = {"_target_": "mine.Mine", "every_n_steps": 20, "target_modules": "x", "log_layers": 0, "overlap_low": 0.5}
    (tmp_path / "conf" / "svd_policy" / "mine.yaml").write_text(yaml.safe_dump(own))
    command = [sys.executable, "-m", "lab.replay", str(run), "--config-dir", "conf", "svd_policy=mine"]
    began = time.perf_counter()
    done = subprocess.run([*command, "svd_policy.overlap_low=0.1,0.999", "--to", "out"], cwd=tmp_path, text=True)
    assert done.returncode == 0
    assert time.perf_counter() - began < 20
    rows = json.loads((tmp_path / "out" / "replay.json").read_text())
    assert rows[1]["layers_that_fire"] >= rows[0]["layers_that_fire"]


def test_one_set_of_thresholds_is_drawn_clause_by_clause(run, tmp_path, capsys):
    assert "clauses.png" in say(capsys, run, "svd_policy=phase1", "svd_policy.k=4", "--to", tmp_path / "drawn")
    assert (tmp_path / "drawn/clauses.png").read_bytes()[:4] == b"\x89PNG"


def test_a_tick_at_which_a_clause_was_not_tested_is_a_gap_in_its_line_and_not_a_straight_one():
    def tick(step, **values):
        clauses = [
            {"name": name, "value": value, "limit": 0.0, "op": ">", "chance": None} for name, value in values.items()
        ]
        return {"step": step, "layer": "q", "action": "none", "clauses": clauses}

    lines = clause_figure.lines_of([tick(0, a=1.0, b=-2.0), tick(20, a=None), tick(40, a=3.0, b=4.0)])
    assert [(step, value) for step, value, _ in lines["a"]["q"]] == [(0, 1.0), (20, None), (40, 3.0)]
    assert [(step, value) for step, value, _ in lines["b"]["q"]] == [(0, -2.0), (20, None), (40, 4.0)]


def test_a_layer_to_mark_that_is_not_there_is_named(run):
    assert "is no layer of this ledger" in refusal(run, "svd_policy=phase1", "svd_policy.k=4", "--mark", "q_porj")


def test_a_live_run_that_differs_before_its_first_action_is_not_as_replayed(run, tmp_path, capsys):
    live = tmp_path / "live"
    rows = record(live, "phase1")
    (live / RESULT).write_text("{}")
    said = say(capsys, run, "--against", live, "--to", tmp_path)
    assert "as replayed, every number until then the same; they part nowhere" in said
    made = decisions.decide_all(rows, replay.make_policy(settings("phase1")))
    made[LAYERS]["clauses"][0]["value"] += 1.0  # of the second tick, at which nothing acts yet
    (live / decisions.FILE).unlink()
    decisions.append(live, made)
    said = say(capsys, run, "--against", live, "--to", tmp_path)
    assert "NOT as replayed" in said
    assert f"they part at step {made[LAYERS]['step']}" in said
    assert "| **no** |" in against.table(tmp_path / against.RUNS)


def test_of_a_live_run_that_first_acts_behind_the_replays_end_nothing_is_claimed(run, tmp_path, capsys):
    """The observed run ended before the tick at which the live one, the same until then, first acts."""
    rows = record(tmp_path / "live", "phase1")
    (tmp_path / "live" / RESULT).write_text("{}")
    acted, _ = against.first_action(decisions.read(tmp_path / "live"))
    policy, kept = settings("phase1"), [row for row in rows if row.step < acted]
    last = kept[-1].step
    ledger.Ledger(tmp_path / "observed", {"policy": policy, "targets": {}}).append(kept)
    said = say(capsys, tmp_path / "observed", "--against", tmp_path / "live", "--to", tmp_path)
    assert f"the replay cannot answer beyond step {last}, up to where every number is the same" in said
    assert "NOT as replayed" not in said
    assert f"| yes, up to step {last}, the replay's last |" in against.table(tmp_path / against.RUNS)


def test_a_live_run_that_was_measured_otherwise_and_a_folder_without_runs_are_refused(run, tmp_path):
    live = tmp_path / "live"
    record(live, "phase1", every_n_steps=5)
    (live / RESULT).write_text("{}")
    assert (
        "was measured with every_n_steps=5 and the observed run with 20; compare runs that differ in limits"
        in refusal(run, "--against", live)
    )
    assert "is no run and holds none; name a live run's folder" in refusal(run, "--against", tmp_path / "live" / "none")


def test_the_table_of_the_thresholds_study_is_that_of_its_csv_and_every_first_switch_is_as_replayed():
    page = Path(__file__).resolve().parent.parent / "docs/studies/thresholds"
    made = against.table(page / against.RUNS)
    assert f"{against.BEGIN}\n\n{made}\n\n{against.END}" in (page / "README.md").read_text()
    assert made.count("| yes |") == len(made.splitlines()) - 2 >= 3
