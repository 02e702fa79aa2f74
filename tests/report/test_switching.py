"""Forms over the steps from the rows of switches.jsonl: counts against arithmetic by hand, and what may be claimed."""

import json

import pytest
from synthetic import make_run

from lab import record
from lab.report.analysis import analyse
from lab.report.run import load_run
from lab.report.switching import replay, switching_of

SHAPES = {"a": (8, 8), "b": (8, 16)}  # 64 and 128 entries
PAIRS = {"a": 2 * 16, "b": 2 * 24}  # of rank 2


def row(step, layer, to, reason="eligible", rank=2):
    after = SHAPES[layer][0] * SHAPES[layer][1] if to == "full" else PAIRS[layer] * rank // 2
    return {"step": step, "layer": layer, "to": to, "reason": reason, "rank": None if to == "full" else rank,
            "parameters_after": after}  # fmt: skip


WHOLE = 64 + 128


def test_parameters_rank_and_bytes_are_those_of_the_forms_at_each_moment():
    """Muon: a weight, its gradient and one moment, 12 bytes an entry; a fading residual is 4 bytes an entry more."""
    own = replay([row(5, "a", "fading"), row(9, "a", "low_rank", "faded"), row(20, "a", "full", "outside")], SHAPES, 1)
    assert [moment.step for moment in own.moments] == [0, 0, 5, 9, 20]
    assert [moment.bytes for moment in own.moments] == [
        4 * WHOLE,  # before the first step
        12 * WHOLE,
        12 * (32 + 128) + 4 * 64,
        12 * (32 + 128),
        12 * WHOLE,
    ]
    assert [moment.trained for moment in own.moments[1:]] == [192, 160, 160, 192]
    assert [moment.rank for moment in own.moments[1:]] == [8, 5, 5, 8]
    assert [moment.low for moment in own.moments[1:]] == [0, 1, 1, 0]
    assert own.moments[2].flops == pytest.approx((32 + 2 / 3 * 64 + 128) / WHOLE), (
        "a frozen weight's two passes of three"
    )
    assert (own.switched, own.layers, own.first, own.returned, own.rolled_back) == (1, 2, 5, 1, 0)


def test_adamw_has_a_moment_more():
    assert replay([], SHAPES, 2).full_bytes == 16 * WHOLE
    assert replay([], SHAPES, 2).peak_bytes == 16 * WHOLE


def test_a_roll_back_is_no_return():
    own = replay([row(5, "a", "low_rank"), row(9, "a", "full", "loss_rose"), row(15, "b", "delta")], SHAPES, 1)
    assert (own.switched, own.returned, own.rolled_back, own.end.low) == (2, 0, 1, 1)


@pytest.mark.parametrize(
    ("rows", "lowers"),
    [
        ([], False),
        ([row(0, "a", "low_rank"), row(0, "b", "low_rank")], True),
        ([row(0, "a", "low_rank")], True),  # b is full throughout: the peak is a's to lower
        ([row(1, "a", "low_rank"), row(1, "b", "low_rank")], False),  # one step was full
        ([row(0, "a", "low_rank"), row(0, "b", "low_rank"), row(7, "a", "full"), row(7, "b", "full")], False),
        ([row(0, "a", "delta"), row(0, "b", "delta")], True),  # the frozen weight stays, its gradient and moment do not
        ([row(0, "a", "delta", rank=4), row(0, "b", "delta", rank=4)], False),  # at break-even the pair is as large
    ],
)
def test_a_peak_is_lowered_by_no_run_that_starts_or_ends_full(rows, lowers):
    assert replay(rows, SHAPES, 1).lowers_peak is lowers


def test_the_least_rank_need_not_be_where_fewest_entries_trained():
    """Fewest train with b at rank 2, 64 + 48; with a at rank 1 it is 16 + 128, at a lower mean rank."""
    own = replay([row(5, "b", "low_rank"), row(9, "b", "full"), row(12, "a", "low_rank", rank=1)], SHAPES, 1)
    assert [(moment.trained, moment.rank) for moment in own.after_start] == [(192, 8), (112, 5), (192, 8), (144, 4.5)]
    assert (own.least.step, own.least.rank) == (5, 5)
    assert own.least_rank == own.row()["mean_rank_least"] == 4.5


def test_the_largest_fall_of_the_rank_is_found_across_a_rise():
    rows = [row(5, "a", "low_rank"), row(9, "a", "full"), row(12, "a", "low_rank"), row(15, "b", "low_rank")]
    before, after = replay(rows, SHAPES, 1).fall
    assert (before.rank, after.rank, after.step) == (8, 2, 15), "from all full to none, by way of step 12"
    assert replay([row(0, "a", "low_rank"), row(9, "a", "full")], SHAPES, 1).fall is None


def test_steps_are_timed_where_no_switch_lies_inside():
    """Half of the FLOPs are the layers', which after the switch take (32 + 128) of 192 of theirs."""
    timed = [(0, 5, 1.0), (5, 10, 0.7), (10, 15, 0.9), (15, 20, 0.6), (20, 25, 0.8)]
    own = replay([row(5, "a", "low_rank"), row(12, "a", "full")], SHAPES, 1, 0.5, timed)
    assert own.step_seconds == (0.8, 0.7), "full: 1.0, 0.6, 0.8; low: 0.7; the stretch of the return: neither"
    assert own.step_ratio == pytest.approx(1 - 0.5 * (1 - 160 / 192))


@pytest.mark.parametrize(
    ("bound", "share"), [({"flops_share": 0.8, "passes_share": 0.5}, 0.5), ({"flops_share": 0.8}, None)]
)
def test_the_ratio_by_flops_is_of_the_passes_and_leaves_out_muons_part_which_falls_otherwise(bound, share, tmp_path):
    """A run of before passes_share was recorded has no ratio: its share may hold Muon's part."""
    run = make_run(tmp_path / "0_run", arm="grow", seed=1, loss=2.0, config={"method": "full"})
    head = {"targets": {name: {"shape": shape} for name, shape in SHAPES.items()}}
    (run / "ledger").mkdir()
    (run / "ledger/rows.jsonl").write_text(f"0 {json.dumps(head)}\n")
    (run / "switches.jsonl").write_text(json.dumps(row(0, "a", "low_rank")) + "\n")
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "spectral": {"before": {"bound": bound}}}))
    expected = None if share is None else pytest.approx(1 - share * (1 - (32 + 128) / 192))
    assert switching_of(load_run(run)).step_ratio == expected


def test_a_switched_step_is_timed_when_nothing_fades_any_more_and_most_layers_have_gone():
    timed = [(0, 5, 1.0), (5, 9, 1.3), (9, 12, 0.9), (12, 20, 0.4), (20, 25, 0.6)]
    rows = [row(5, "a", "fading"), row(9, "a", "low_rank", "faded"), row(12, "b", "low_rank")]
    own = replay(rows, SHAPES, 1, 0.5, timed)
    assert own.step_seconds == (1.0, 0.5), "of both low-rank: 0.4 and 0.6"
    assert own.step_ratio == pytest.approx(1 - 0.5 * (1 - (32 + 48) / 192))


def test_a_damaged_file_of_switches_is_said_and_the_run_still_counts(tmp_path):
    run = make_run(tmp_path / "0_run", arm="grow", seed=1, loss=2.0, config={"method": "full"})
    head = {"targets": {name: {"shape": shape} for name, shape in SHAPES.items()}}
    (run / "ledger").mkdir()
    (run / "ledger/rows.jsonl").write_text(f"0 {json.dumps(head)}\n")
    assert switching_of(load_run(run)).switched == 0
    (run / "switches.jsonl").write_text('{"step": 5, "la')
    analysis = analyse(tmp_path)
    assert len(analysis.arms[0].runs) == 1
    (problem,) = analysis.study.problems
    assert "its switches are left out" in problem.reason


def test_the_last_row_of_a_run_that_still_runs_is_no_problem_where_it_is_half_written(tmp_path):
    run = make_run(tmp_path / "0_run", arm="grow", seed=1, loss=2.0, config={"method": "full"}, status="running")
    (run / "ledger").mkdir()
    (run / "ledger/rows.jsonl").write_text(f"0 {json.dumps({'targets': {'a': {'shape': SHAPES['a']}}})}\n")
    (run / "switches.jsonl").write_text('{"step": 5, "la')
    with record.lock(run):  # held by the process that trains
        analysis = analyse(tmp_path)
    assert analysis.counts == {"running": 1}
    assert analysis.study.problems == ()


def test_a_run_without_ticks_and_one_of_adapters_have_no_forms(tmp_path):
    run = make_run(tmp_path / "0_run", arm="never", seed=1, loss=2.0, config={"method": "full"})
    assert switching_of(load_run(run)) is None
