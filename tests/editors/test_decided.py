"""Switches that a policy decides in real runs: trials that leave no trace, replay, kills, and two processes as one."""

import csv
import json
import math
import shutil

import pytest
import torch
from jobs import SMALL, losses, run
from killing import differing, start
from safetensors.torch import load_file
from torch import nn

from lab import config, ledger, record
from lab.editors.trials import Trials
from lab.launch import job, resume
from lab.ledger import Row
from lab.replay import __main__ as replay
from lab.replay import against
from lab.replay.outcome import sweep
from lab.spectral.chance import chance
from lab.spectral.outside import outside
from lab.svd_policy import decisions
from lab.training import checkpoint

FULL = (
    *("method=full", "evaluate.accuracy=false", "evaluate.num_samples=0", "schedule.max_epochs=6"),
    *("schedule.max_steps=20", "schedule.save_every_n_steps=3", "evaluate.test=false"),
)
AUTO = (  # limits at which a run of 20 steps has every kind of decision
    *("svd_policy=auto", "svd_policy.every_n_steps=1", "svd_policy.k=4", "svd_policy.warmup_steps=2"),
    *("svd_policy.fade_steps=4", "svd_policy.window=2", "svd_policy.probation_ticks=2", "svd_policy.patience=1"),
    *("svd_policy.overlap=0.3", "svd_policy.trial_jump=0.5", "svd_policy.cooldown_ticks=1"),
    *(
        "svd_policy.outside_low=1.0",
        "svd_policy.outside_high=1.01",
        "svd_policy.loss_rise=-9",
        "svd_policy.loss_z=-1e9",
    ),
)
LOGGED = ("schedule.warmup_steps=6", "schedule.log_every_n_steps=1")
KEPT = "svd_policy.loss_z=99"  # nothing is rolled back
OPTIMS = {"adamw": (), "muon": ("optim=muon",)}


def actions(folder):
    return {(row["action"], row["reason"]) for row in decisions.read(folder)}


@pytest.fixture(scope="module", params=OPTIMS)
def decided(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return folder, run(folder, *FULL, *OPTIMS[request.param], *AUTO), request.param


def test_a_run_goes_low_rank_and_is_rolled_back_and_says_so(decided):
    folder, result, _ = decided
    assert {("to_low_rank", "eligible"), ("rollback", "loss_rose")} <= actions(folder)
    switched = [json.loads(line) for line in (folder / "switches.jsonl").read_text().splitlines()]
    assert {(row["from"], row["to"], row["reason"]) for row in switched} >= {
        ("full", "fading", "eligible"),
        ("fading", "full", "loss_rose"),
    }
    assert result.switches == sum("full" in (row["from"], row["to"]) for row in switched)
    tried = [row for row in ledger.read(folder).rows if row.trial is not None]
    assert tried
    assert all(0 <= row.trial.outside <= 1 and row.trial.jump is not None for row in tried)


def test_rows_hold_the_mean_loss_between_ticks_and_the_factor_of_the_rate(tmp_path):
    run(tmp_path, *FULL, "svd_policy=observe", "svd_policy.every_n_steps=4", "svd_policy.k=4", *LOGGED)
    rows = {row.step: row for row in ledger.read(tmp_path).rows}
    metrics = {int(step): float(loss) for step, loss, *_ in losses(tmp_path) if loss}
    assert list(rows) == [0, 4, 8, 12, 16]
    assert rows[0].loss == pytest.approx(metrics[1], rel=1e-6)
    # batches of 8 with unequal numbers of tokens: the token mean lies within the range of the steps' means
    for step in (4, 8, 12, 16):
        between = [metrics[i] for i in range(step - 2, step + 2)]
        assert min(between) <= rows[step].loss <= max(between)
    assert rows[4].lr_factor == pytest.approx(5 / 7)


def test_trials_leave_training_as_it_is_to_the_bit(tmp_path):
    """They are asked for at every tick, and pass at none: with dropout, which a draw would show."""
    common = (*FULL, "+model.architecture.attention_dropout=0.2", "svd_policy.every_n_steps=1", "svd_policy.k=4")
    tries = ("svd_policy=compress", "svd_policy.patience=1", "svd_policy.overlap=0", "svd_policy.cooldown_ticks=0")
    more = ("svd_policy.window=2", "svd_policy.warmup_steps=0", "svd_policy.trial_jump=-9")
    run(tmp_path / "tried", *common, *tries, *more)
    run(tmp_path / "watched", *common, "svd_policy=observe")
    assert sum(row.trial is not None for row in ledger.read(tmp_path / "tried").rows) > 100
    assert losses(tmp_path / "tried") == losses(tmp_path / "watched")
    one, other = (load_file(tmp_path / name / "model/model.safetensors") for name in ("tried", "watched"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_trials_loss_is_that_of_the_truncated_weight_and_its_weight_comes_back():
    net = nn.ModuleDict({"a": nn.Linear(12, 10, bias=False)})
    weight = net["a"].weight
    weight.grad = torch.randn(10, 12, generator=torch.Generator().manual_seed(0))
    kept = weight.detach().clone()
    policy = type("Policy", (), {"tried_form": "compress", "start": "zero"})()
    (trial,) = Trials(net, policy, lambda: float(torch.linalg.matrix_rank(net["a"].weight.detach())))(
        {"a": 3}, torch.optim.SGD([weight])
    ).values()
    assert (trial.rank, trial.loss_before, trial.loss_after) == (3, 10.0, 3.0)
    assert torch.equal(weight.detach(), kept)
    U, _, Vh = torch.linalg.svd(kept.double())
    rest = (torch.eye(10) - U[:, :3] @ U[:, :3].T) @ weight.grad.double() @ (torch.eye(12) - Vh[:3].T @ Vh[:3])
    assert trial.outside == pytest.approx(float(rest.square().sum() / weight.grad.square().sum()), rel=1e-5)


def test_a_loss_that_is_no_number_is_none_in_a_trial():
    """The ledger holds none such, and the run ends by its next training loss, which says where it comes from."""
    net = nn.ModuleDict({"a": nn.Linear(12, 10, bias=False)})
    policy = type("Policy", (), {"tried_form": "compress", "start": "zero"})()
    trials = Trials(net, policy, lambda: math.nan)({"a": 3}, torch.optim.SGD([net["a"].weight]))
    assert (trials["a"].loss_before, trials["a"].loss_after, trials["a"].jump) == (None, None, None)


@pytest.mark.parametrize("rank", [0, 3])
def test_what_lies_outside_of_a_pair_is_what_no_change_of_its_factors_can_follow(rank):
    """Against least squares over all ΔB and ΔA."""
    generator = torch.Generator().manual_seed(0)
    m, n, r = 7, 6, 3
    A = torch.randn(r, n, generator=generator)
    B = torch.randn(m, r, generator=generator) * (rank > 0)
    G = torch.randn(m, n, generator=generator)
    moves = [torch.outer(e, A[j]) for e in torch.eye(m) for j in range(r)]
    moves += [torch.outer(B[:, j], e) for e in torch.eye(n) for j in range(r)]
    M = torch.stack([move.reshape(-1) for move in moves], 1).double()
    best = M @ torch.linalg.lstsq(M, G.reshape(-1, 1).double(), driver="gelsd").solution
    left = (G.reshape(-1, 1).double() - best).square().sum() / G.double().square().sum()
    assert outside(G, B, A) == pytest.approx(float(left), abs=1e-6)
    assert outside(torch.zeros(m, n), B, A) is None


def test_replay_reproduces_a_run_that_switches_and_says_where_it_stops_being_exact(decided, capsys):
    folder, _, _ = decided
    replay.main([str(folder)])
    said = capsys.readouterr().out
    assert "decisions of decisions.jsonl exactly" in said
    first = next(row for row in ledger.read(folder).rows if row.mode != "full")
    assert f"Exact up to step {first.step}, where" in said


def test_a_guard_ends_a_replays_exactness_too():
    rows = [Row.__new__(Row) for _ in range(2)]
    for row, (step, mode) in zip(rows, ((0, "full"), (20, "guard")), strict=True):
        for name, value in {"step": step, "mode": mode, "layer": "a"}.items():
            object.__setattr__(row, name, value)
    (note,) = replay.notes(ledger.Recorded({}, rows, cut=False))
    assert note.startswith("Exact up to step 20, where a was guard")


LIMITS = (-1e-3, -1e-4, 1e-4)  # nats; trials of this run cost -2.5e-4 at least, and early ones 5e-5


OPEN = tuple(item for item in (*FULL, *AUTO, KEPT) if "trial_jump" not in item)


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """A run with a limit that no trial meets, so that nothing switches."""
    folder = tmp_path_factory.mktemp("observed")
    run(folder, *OPEN, "svd_policy.trial_jump=-9")
    return folder


def firsts_of(live):
    """The step and the layers of a run's first switch; None, without any."""
    went = [row for row in decisions.read(live) if row["action"] == "to_low_rank"]
    step = went[0]["step"] if went else None
    return step, sorted(row["layer"] for row in went if row["step"] == step)


def firsts_said(outcome):
    fires = [(fire[0], layer) for layer, fire in outcome.first_fire.items() if fire is not None]
    first = min((step for step, _ in fires), default=None)
    return first, sorted(layer for step, layer in fires if step == first)


def test_the_first_switch_at_each_limit_is_what_a_replay_of_one_observed_run_says(observed, tmp_path):
    """Then a live run at each limit."""
    recorded = ledger.read(observed)
    policy = replay.make_policy(recorded.header["policy"])
    firsts = []
    for outcome in sweep(recorded.rows, policy, {"trial_jump": list(LIMITS)}):
        limit = outcome.settings["trial_jump"]
        run(tmp_path / str(limit), *OPEN, f"svd_policy.trial_jump={limit}")
        assert firsts_of(tmp_path / str(limit)) == firsts_said(outcome)
        firsts.append(firsts_said(outcome)[0])
    assert firsts[0] is None
    assert firsts[1] > firsts[2], "the stricter, the later"
    replay.main([str(observed), "--against", str(tmp_path), "--to", str(tmp_path / "compared")])
    with open(tmp_path / "compared" / against.RUNS, newline="") as file:
        rows = {row["settings"]: row for row in csv.DictReader(file)}
    assert [rows[f"trial_jump={limit}"]["live_step"] for limit in LIMITS] == [str(step or "") for step in firsts]
    assert all(row["same"] == "True" for row in rows.values())
    for row in rows.values():  # at the next tick, where the replay answers for it
        beyond = row["live_step"] and int(row["live_step"]) < int(row["replay_until"])
        assert row["parts_at"] == (str(int(row["live_step"]) + 1) if beyond else "")


def test_a_target_becomes_a_number_before_the_run_which_then_needs_the_observed_run_no_more(observed, tmp_path):
    copy, live = tmp_path / "copy", tmp_path / "live"
    shutil.copytree(observed, copy)
    asked = (*OPEN, "svd_policy.thresholds=target", f"svd_policy.observed_path={copy}", "svd_policy.target_share=0.3")
    assert start(live, *asked, kill_before="lab.training.checkpoint:save", call=5) == -9
    held = config.load(live)
    limit = held.svd_policy["trial_jump"]
    assert held.svd_policy["thresholds"] == "fixed"
    resume.check_same(config.compose(*SMALL, *asked), live)  # which would refuse a run of other settings
    shutil.rmtree(copy)
    job.launch(held, live, choices={}, overrides=[], alone=False)
    recorded = ledger.read(observed)
    policy = replay.make_policy(recorded.header["policy"])
    (outcome,) = sweep(recorded.rows, policy, {"trial_jump": [limit]})
    assert firsts_of(live) == firsts_said(outcome)
    assert firsts_of(live)[0] is not None
    trials = {row.layer: [] for row in recorded.rows}
    for row in recorded.rows:
        if row.trial is not None and row.trial.outside / (1 - chance("either", row.trial.rank, row.shape)) <= 1:
            trials[row.layer].append(row.trial.jump)
    cheapest = sorted(min(jumps) for jumps in trials.values() if jumps)
    assert limit == cheapest[math.ceil(0.3 * len(trials)) - 1], "an order statistic of the layers' cheapest trials"


LEARNED = ("svd_policy.thresholds=quantile", "svd_policy.quantile=0.5", "svd_policy.warmup_steps=8")
QUANTILE = ("svd_policy=compress", *AUTO[1:], *LEARNED)


def test_limits_learned_in_the_warm_up_are_the_same_in_a_replay_and_after_a_kill_in_it_or_behind_it(tmp_path, capsys):
    whole = tmp_path / "whole"
    run(whole, *FULL, *QUANTILE)
    limits = {
        (row["layer"], item["limit"])
        for row in decisions.read(whole)
        for item in row["clauses"]
        if item["name"] == "overlap" and row["step"] > 8
    }
    assert len(limits) == len({layer for layer, _ in limits}) == len({limit for _, limit in limits}) > 3, "one a layer"
    replay.main([str(whole)])
    assert "decisions of decisions.jsonl exactly" in capsys.readouterr().out
    for call in (6, 12):  # a tick at step s is the (s+1)-th write
        killed = tmp_path / str(call)
        before = "lab.instruments.decider:Decider.decide"
        assert start(killed, *FULL, *QUANTILE, kill_before=before, call=call) == -9
        run(killed, *FULL, *QUANTILE)
        assert differing(whole, killed) == []


@pytest.mark.parametrize("after", ["in_probation", "after_a_rollback", "inside_a_tick"])
def test_a_run_killed_in_a_probation_or_after_a_rollback_goes_on_to_the_bit(after, decided, tmp_path):
    folder, _, optim = decided
    made = decisions.read(folder)
    went = next(row["step"] for row in made if row["action"] == "to_low_rank")
    back = next(row["step"] for row in made if row["action"] == "rollback")
    # a tick at step s is the (s+1)-th write, since every step has one
    call = {"in_probation": went + 2, "after_a_rollback": back + 2, "inside_a_tick": back + 1}[after]
    overrides = (*FULL, *OPTIMS[optim], *AUTO)
    killed = start(tmp_path, *overrides, kill_before="lab.instruments.decider:Decider.decide", call=call)
    assert killed == -9
    run(tmp_path, *overrides)
    assert differing(folder, tmp_path) == []


@pytest.mark.slow
def test_two_processes_decide_as_one(tmp_path):
    common = (*FULL, *AUTO, KEPT, "optim.lr=1e-4")
    run(tmp_path / "one", *common, "hardware.micro_batch_size=8")  # a trial's batch is the last micro-batches together
    run(tmp_path / "two", *common, "hardware.devices=2")
    one, two = (
        [(row["step"], row["layer"], row["action"], row["rank"]) for row in decisions.read(tmp_path / name)]
        for name in ("one", "two")
    )
    first = next(step for step, _, action, _ in one if action == "to_low_rank")
    assert [row for row in one if row[0] <= first] == [row for row in two if row[0] <= first]
    rows = {name: {(r.step, r.layer): r for r in ledger.read(tmp_path / name).rows} for name in ("one", "two")}
    for key, row in rows["one"].items():
        if row.step <= first:
            assert row.loss == pytest.approx(rows["two"][key].loss, rel=1e-5)
    structures = [
        checkpoint.load(tmp_path / name / "checkpoints/last.ckpt")["structure"]["layers"] for name in ("one", "two")
    ]
    assert structures[0].keys() == structures[1].keys()


PHASE1 = ("svd_policy=phase1", "svd_policy.every_n_steps=2", "svd_policy.warmup_steps=3")


def test_the_seeds_rule_switches_as_it_meant_and_changes_ranks_keeping_the_function(tmp_path):
    result = run(tmp_path / "whole", *FULL, *PHASE1)
    switched = [json.loads(line) for line in (tmp_path / "whole/switches.jsonl").read_text().splitlines()]
    ways = {(row["from"], row["to"]) for row in switched}
    assert ("full", "delta") in ways
    assert ("delta", "delta") in ways
    for row in switched:
        assert row["loss_after"] == pytest.approx(row["loss_before"], rel=1e-6)
    ranks = {}
    for row in switched:
        if row["from"] == "delta" == row["to"]:
            assert row["rank"] == max(8, int(0.8 * ranks[row["layer"]])) or row["rank"] > ranks[row["layer"]]
        ranks[row["layer"]] = row["rank"]
    assert result.status == record.read(tmp_path / "whole").status == "completed"
    assert start(tmp_path / "killed", *FULL, *PHASE1, kill_before="lab.training.checkpoint:save", call=5) == -9
    run(tmp_path / "killed", *FULL, *PHASE1)
    assert differing(tmp_path / "whole", tmp_path / "killed") == []
