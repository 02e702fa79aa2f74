"""Facts about every policy that a YAML names, and about the decision machinery."""

import inspect
import json
from pathlib import Path

import pytest
import yaml
from constructed import policy

from lab.config import CONF
from lab.errors import UsageError
from lab.replay.__main__ import make_policy
from lab.svd_policy import clause, decisions
from lab.svd_policy.observe import Observe
from lab.testing import check_policy, example_rows

YAMLS = sorted((CONF / "svd_policy").glob("*.yaml"))


# By chance, and the seed's rule, which is kept with what is wrong with it: a rank that changes at every tick.
RESTLESS = {"random", "phase1", "phase1_lenient"}


def policy_of(path: Path, **changes):
    return make_policy({**yaml.safe_load(path.read_text()), **changes})


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_policy_passes_the_labs_own_checks(path):
    settings = yaml.safe_load(path.read_text())
    check_policy(make_policy(settings), steady=path.stem not in RESTLESS)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_a_yaml_holds_every_setting_and_the_class_no_default(path):
    settings = yaml.safe_load(path.read_text())
    parameters = inspect.signature(type(make_policy(settings))).parameters
    assert set(parameters) == set(settings) - {"_target_"}
    later = {"layers_per_tick"}  # settings that configs and ledgers of before 2026-11-28 do not have
    later |= {
        "thresholds",
        "false_alarm",
        "quantile",
        "target_share",
        "observed_path",
    }  # nor those of before 2026-11-30
    assert all(p.default is inspect.Parameter.empty for name, p in parameters.items() if name not in later)
    assert path.read_text().startswith("# ")


def test_a_clause_says_how_far_it_is_from_its_limit():
    above, below = clause("angle", "<", 0.3, 0.1, chance=1.5), clause("overlap", ">=", 0.9, 0.9)
    assert (above.holds, above.margin) == (False, pytest.approx(-0.2))
    assert (below.holds, below.margin) == (True, 0.0)
    assert not clause("angle", "<", None, 0.1).holds


def test_a_weight_that_is_not_finite_is_held_with_the_reason():
    policy = policy_of(CONF / "svd_policy" / "observe.yaml", k=4)
    broken = [row for row in example_rows() if row.reason == "non_finite"]
    decision, _ = policy.decide(broken[0], {})
    assert (decision.mode, decision.action, decision.reason) == ("hold", "none", "non_finite")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": 0}, "k=0"),
        ({"engine": "fast"}, "'fast'"),
        ({"budget": 0.0}, "budget=0.0"),
        ({"layers_per_tick": 0.0}, "layers_per_tick=0.0 is no share of the layers"),
        ({"layers_per_tick": 1.5}, "layers_per_tick=1.5"),
        ({"layers_per_tick": float("nan")}, "layers_per_tick=nan"),
        ({"oversample": 0}, "=0"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(change, says):
    with pytest.raises(UsageError, match=says):
        policy_of(CONF / "svd_policy" / "observe.yaml", **change)


@pytest.mark.parametrize("name", ["compress", "delta", "guard", "auto", "phase1", "phase1_lenient"])
def test_rules_without_a_tick_to_decide_at_are_refused(name):
    with pytest.raises(UsageError, match="would decide nothing"):
        policy(name, every_n_steps=None).check_run({"q": (400, 400)})
    policy("scheduled", every_n_steps=None).check_run({"q": (400, 400)})


def test_more_directions_than_a_layer_has_are_refused_with_the_layer():
    policy = policy_of(CONF / "svd_policy" / "observe.yaml", k=64)
    assert isinstance(policy, Observe)
    with pytest.raises(UsageError, match=r"k=64 is more than q_proj has directions \(32x56\)"):
        policy.check_run({"q_proj": (32, 56)})


def test_decisions_are_cut_back_to_a_step_and_a_cut_line_is_dropped(tmp_path):
    policy = policy_of(CONF / "svd_policy" / "observe.yaml", k=4)
    made = decisions.decide_all(example_rows(), policy)
    decisions.append(tmp_path, made)
    with open(tmp_path / decisions.FILE, "a") as file:
        file.write(json.dumps(made[0])[:-9])
    assert decisions.read(tmp_path) == made
    decisions.cut_back(tmp_path, 40)
    assert decisions.read(tmp_path) == [row for row in made if row["step"] <= 40]
    decisions.append(tmp_path, [row for row in made if row["step"] > 40])
    assert decisions.read(tmp_path) == made
