"""What was in the way, from decisions with known numbers."""

import io

import pytest
import yaml
from rich.console import Console

from lab.config import CONF
from lab.replay.__main__ import make_policy
from lab.svd_policy.summary import Approach, Miss, RuleSummary, approaches, summarise
from lab.svd_policy.tables import approach_table, reach_table, short, summary_table
from lab.testing import example_rows

RULES = {"both": ("a", "b")}


def decision(step, a, b, layer="q"):
    clauses = [
        {"name": "a", "op": ">", "value": a, "limit": 1.0, "margin": a - 1, "holds": a > 1, "chance": None},
        {"name": "b", "op": "<", "value": b, "limit": 0.1, "margin": 0.1 - b, "holds": b < 0.1, "chance": None},
    ]
    fires = a > 1 and b < 0.1
    return {"step": step, "layer": layer, "reason": "both" if fires else "no", "clauses": clauses}


def test_the_binding_clause_is_the_one_that_failed_most_and_alone():
    rows = [decision(20, 0.5, 0.3), decision(40, 2, 0.2), decision(60, 2, 0.15), decision(80, 0.9, 0.05)]
    (found,) = summarise(rows, RULES)
    assert (found.ticks, found.fired, found.first_fire) == (4, 0, None)
    assert (found.binding, found.failed, found.alone) == ("b", {"a": 2, "b": 3}, {"b": 2, "a": 1})


def test_the_nearest_miss_is_the_smallest_worst_shortfall_relative_to_its_limit():
    rows = [decision(20, 0.5, 0.05), decision(40, 0.9, 0.12), decision(60, 2, 0.15)]
    (found,) = summarise(rows, RULES)
    # worst shortfalls: 0.5 of 1 at 20; 0.1 of 1 and 0.02 of 0.1 at 40; 0.05 of 0.1 at 60
    assert (found.nearest.step, found.nearest.clause) == (40, "b")
    assert found.nearest.shortfall == pytest.approx(0.2)


def test_a_rule_that_fires_says_when_first_and_warm_up_ticks_do_not_count():
    rows = [
        {"step": 0, "layer": "q", "reason": "warmup", "clauses": []},
        decision(20, 2, 0.05),
        decision(40, 0.5, 0.05),
    ]
    (found,) = summarise(rows, RULES)
    assert (found.ticks, found.fired, found.first_fire, found.binding) == (2, 1, 20, "a")


def test_layers_are_summarised_apart():
    found = summarise([decision(20, 2, 0.05, "q"), decision(20, 0.5, 0.5, "k")], RULES)
    assert [(row.layer, row.fired) for row in found] == [("q", 1), ("k", 0)]


def test_an_approach_extrapolates_the_line_through_the_last_ticks():
    rows = [decision(step, 0.5 + step / 200, 0.5) for step in (20, 40, 60, 80)]
    found = {item.clause: item for item in approaches(rows)}
    assert found["a"].slope == pytest.approx(1 / 200)
    assert found["a"].eta == pytest.approx(20)  # 0.9 at step 80 reaches 1.0 at step 100
    assert found["b"].eta is None  # it does not move
    assert approaches(rows)[0].clause == "a"  # nearest to its limit


def printed(table):
    console = Console(file=io.StringIO(), width=220)
    console.print(table)
    return " ".join(console.file.getvalue().split())


def test_the_tables_say_what_was_near_and_what_was_in_the_way():
    rows = [decision(20, 0.5, 0.3), decision(40, 0.9, 0.2)]
    assert "0.9 > 1 -0.1 +0.02 5" in printed(approach_table(approaches(rows)))
    rows[1] = decision(40, 2, 0.2)
    text = printed(summary_table(summarise(rows, RULES)))
    assert "never b b" in text
    assert "failed 2, alone 1 0.2 at step 40" in text


def test_the_table_before_a_run_says_what_cannot_hold():
    settings = yaml.safe_load((CONF / "svd_policy" / "phase1.yaml").read_text())
    first = example_rows(engine="exact", ticks=2)[:1]
    text = printed(reach_table(make_policy({**settings, "k": 4}), first))
    assert "reconstruction_safe 40x40" in text
    assert "cannot hold" in text


def test_what_is_said_of_several_shapes_alike_is_said_once():
    settings = yaml.safe_load((CONF / "svd_policy" / "compress.yaml").read_text())
    first = [row for row in example_rows(ticks=2) if row.step == 40 and row.reason is None]
    text = printed(reach_table(make_policy({**settings, "k": 4}), first))
    assert text.count("lr_floor") == text.count("of the peak rate") == 1
    assert text.count("trial_jump") > 1, "ranks differ by shape"


@pytest.mark.parametrize("layer", ["model.layers.11.self_attn.o_proj", "model.layers.101.block_sparse_moe.down_proj"])
def test_at_eighty_columns_nothing_is_cut_off(layer):
    clause = "reconstruction_safe"
    near = Approach(layer=layer, clause=clause, op="<", value=0.98123, limit=0.01, margin=-0.97, slope=-1e-5, eta=97123)
    row = RuleSummary(
        layer=layer,
        reason="optimal_lowrank_conditions",
        ticks=99,
        fired=12,
        first_fire=1980,
        binding=clause,
        failed={clause: 87},
        alone={clause: 12},
        nearest=Miss(step=1960, clause=clause, value=0.98123, limit=0.01, shortfall=97.0),
    )
    for table in (approach_table([near]), summary_table([row])):
        console = Console(file=io.StringIO(), width=80)
        console.print(table)
        text = console.file.getvalue()
        assert "…" not in text
        assert max(len(line) for line in text.splitlines()) <= 80
        if "11" in layer:  # as long as NanoChat's: on one line
            assert short(layer) in text
            assert clause in text
