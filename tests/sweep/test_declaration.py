import math

import pytest

from lab.errors import UsageError
from lab.record.study import pair_of, read_study, write_study
from lab.sweep.declaration import declare, with_budget

BLOCK = {
    "name": "rank_sweep",
    "question": "Which LoRA rank is enough?",
    "arms": {
        "r64": "rank=64", "r2": "rank=2", "r4": "rank=4", "r8": "rank=8", "r16": "rank=16",
        "full": ["method=full", "optim=sgd"],
    },
    "baseline": "r64",
    "contrasts": ["r4", "r8", "r16"],
    "margin": "1%",
    "seeds": [1, 2, 3, 4, 5, 6],
    "learning_rates": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
    "sizes": {"quick": {"arms": ["r64", "r8"], "seeds": [1, 2], "learning_rates": [1e-3]}},
}  # fmt: skip


def test_a_declaration_survives_the_disk(tmp_path):
    study = declare(BLOCK)
    write_study(tmp_path, study)
    assert read_study(tmp_path) == study
    assert read_study(tmp_path / "none") is None


def test_a_size_replaces_what_it_names():
    quick = declare(BLOCK, "quick")
    assert list(quick.arms) == ["r64", "r8"]
    assert quick.contrasts == ["r8"]
    assert quick.learning_rates == {"r64": [1e-3], "r8": [1e-3]}
    assert declare(BLOCK, "full").arms == declare(BLOCK).arms


def test_a_pair_is_judged_where_both_its_arms_are_left():
    block = BLOCK | {"contrasts": ["r8/r64", "r8/r4", "r2"]}
    assert declare(block).contrasts == ["r8/r64", "r8/r4", "r2"]
    assert declare(block, "quick").contrasts == ["r8/r64"]


def test_an_arm_whose_name_holds_a_slash_is_an_arm_and_no_pair():
    """An arm made of `data.path=/a/b` on the command line is named after it."""
    arms = ["x", "y", "x/y", "data.path=/a/b"]
    assert pair_of("x/y", arms, "base") == ("x/y", "base")
    assert pair_of("y/x", arms, "base") == ("y", "x")
    assert pair_of("data.path=/a/b/x", arms, "base") == ("data.path=/a/b", "x")
    assert pair_of("data.path=/a/b", arms, "base") == ("data.path=/a/b", "base")


def test_the_key_of_the_learning_rates_is_the_studys_own():
    block = BLOCK | {"rate": "optim.matrix_lr"}
    study = declare(block, given={"optim.matrix_lr": ["1e-2", "2e-2"]})
    assert study.learning_rates["r2"] == [1e-2, 2e-2]
    assert declare(block, given={"optim.lr": ["1e-3"]}).common == ["optim.lr=1e-3"]
    with pytest.raises(UsageError, match=r"seed, optim\.matrix_lr"):
        declare(block, given={"optim.lr": ["1e-3", "3e-3"]})


def test_a_list_on_the_command_line_replaces_an_axis():
    study = declare(
        BLOCK, given={"rank": ["64", "8", "128"], "seed": ["3", "4", "5", "6"], "optim.lr": ["1e-3", "3e-3"]}
    )
    assert study.arms == {"r64": ["rank=64"], "r8": ["rank=8"], "rank=128": ["rank=128"], "aa": ["rank=64"]}
    assert study.contrasts == ["r8", "rank=128"]
    assert study.seeds == [3, 4, 5, 6]
    assert study.twin_seeds == [1003, 1004, 1005, 1006]
    assert study.learning_rates["rank=128"] == [1e-3, 3e-3]


def test_without_the_declared_baseline_the_first_value_is_it():
    study = declare(BLOCK, given={"rank": ["8", "2"]})
    assert (study.baseline, study.contrasts) == ("r8", ["r2"])


NAMES = {
    "baseline": {"baseline": "r46"},
    "contrasts": {"contrasts": ["r4", "r46"]},
    "contrasts, a pair": {"contrasts": ["r46/r2"]},
    "aims": {"aims": ["r46 better than r2"]},
    "learning_rates": {"learning_rates": {name: [1e-3] for name in [*BLOCK["arms"], "r46"]}},
    "sizes.quick.arms": {"sizes": {"quick": {"arms": ["r64", "r46"]}}},
}


@pytest.mark.parametrize("given", [None, {"experiment": ["mine"]}, {"rank": ["8", "2"]}], ids=str)
@pytest.mark.parametrize("key", NAMES)
def test_a_name_that_is_no_arm_is_refused_with_the_nearest_however_the_study_is_started(key, given):
    """From the command line something is always given, at least the experiment."""
    size = "quick" if key.startswith("sizes") else "default"
    with pytest.raises(UsageError, match="^" + key.partition(",")[0] + ".*'r46'.*did you mean .*r64"):
        declare(BLOCK | NAMES[key], size, given=given)


def test_an_arm_that_only_another_size_has_may_be_named_and_is_left_out():
    assert declare(BLOCK | {"contrasts": ["r8", "r4/r2"]}, "quick", given={"experiment": ["mine"]}).contrasts == ["r8"]
    with pytest.raises(UsageError, match="baseline: 'r2' is no arm"):
        declare(BLOCK | {"baseline": "r2"}, "quick", given={"experiment": ["mine"]})


def test_an_arm_without_learning_rates_is_named():
    rates = {name: [1e-3] for name in BLOCK["arms"] if name != "r8"}
    with pytest.raises(UsageError, match="learning_rates has none of the arm 'r8'"):
        declare(BLOCK | {"learning_rates": rates})


def test_a_single_value_of_another_key_holds_for_every_job():
    assert declare(BLOCK, given={"data": ["alpaca"]}).common == ["data=alpaca"]


@pytest.mark.parametrize(
    ("metric", "higher"),
    [("test_accuracy", True), ("test_accuracy_low", True), *((name, False) for name in (
        "test_loss", "val_bpb", "val_perplexity", "forgetting", "seconds.train", "peak_memory_bytes"
    ))],
)  # fmt: skip
def test_the_direction_of_a_known_metric_need_not_be_declared_and_is_not_contradicted(metric, higher):
    block = BLOCK | {"metric": metric, "margin": 0.01}
    assert declare(block).higher_is_better is higher
    assert declare(block | {"higher_is_better": higher}).higher_is_better is higher
    word = "higher" if higher else "lower"
    with pytest.raises(UsageError, match=f"contradicts metric={metric}, of which {word} is better"):
        declare(block | {"higher_is_better": not higher})


@pytest.mark.parametrize("higher", [True, False])
def test_the_direction_of_a_measure_of_ones_own_is_asked_for(higher):
    block = BLOCK | {"metric": "my_loss", "margin": 0.01}
    assert declare(block | {"higher_is_better": higher}).higher_is_better is higher
    with pytest.raises(
        UsageError, match=r"my_loss of rank_sweep is none whose direction is known; did you mean .*_loss"
    ):
        declare(block)


def test_rates_are_chosen_by_what_is_better_lower():
    with pytest.raises(UsageError, match="selection_metric=test_accuracy of rank_sweep: learning rates are chosen"):
        declare(BLOCK | {"metric": "test_accuracy", "selection_metric": "test_accuracy", "margin": 0.01})


TAKEN = {
    "data_seed": "seed=1,2,3",
    "stage": "leave it out",
    "arm": "narrow",
    "study": "study.name",
    "resume": "resume_study",
}


@pytest.mark.parametrize("prefix", ["", "+", "++"])
@pytest.mark.parametrize("key", TAKEN)
def test_what_a_study_gives_its_jobs_is_refused_with_what_to_use(key, prefix):
    """The job's own override stands behind it and would replace it without a word."""
    word = f"{key}=7 would be replaced .*{TAKEN[key]}"
    with pytest.raises(UsageError, match=word):
        declare(BLOCK, given={"experiment": ["mine"], prefix + key: ["7"]})
    with pytest.raises(UsageError, match=word):
        declare(BLOCK | {"common": f"{prefix}{key}=7"})
    with pytest.raises(UsageError, match=word):
        declare(BLOCK | {"arms": BLOCK["arms"] | {"r2": ["rank=2", f"{prefix}{key}=7"]}})


@pytest.mark.parametrize(("override", "word"), [("seed=7", "tune_seeds"), ("++optim.lr=1e-2", "as learning_rates")])
def test_seeds_and_rates_are_no_settings_of_an_arm(override, word):
    for own in ({"common": override}, {"arms": BLOCK["arms"] | {"r2": ["rank=2", override]}}):
        with pytest.raises(UsageError, match=f"would be replaced in every job of a study: .*{word}"):
            declare(BLOCK | own)


@pytest.mark.parametrize("prefix", ["+", "++"])
def test_an_axis_is_the_same_however_its_override_begins(prefix):
    given = {"seed": ["7", "8"], "optim.lr": ["1e-2"], "rank": ["64", "3"]}
    study = declare(BLOCK, given={prefix + key: values for key, values in given.items()})
    assert study.seeds == [7, 8]
    assert study.learning_rates == {"r64": [1e-2], "rank=3": [1e-2]}
    assert study.arms == {"r64": ["rank=64"], "rank=3": [f"{prefix}rank=3"]}
    assert study.common == []


FORMS = {
    "name": [3, "", None],
    "baseline": [8, ["r8"]],
    "metric": [None, ["test_loss"]],
    "arms": [["r64", "r8"], {}, "r64", None],
    "arms.r8": [None, {"rank": 8}, [8]],
    "contrasts": [3, {"r8": 1}, [None], None],
    "aims": [3, None],
    "common": [3, {"a": 1}, None],
    "seeds": [5, "1,2", [1.0, 2.0], ["1"], [True], None],
    "tune_seeds": [0, None],
    "learning_rates": ["1e-3", ["1e-3"], [None], None],
    "learning_rates.r8": ["fast", True],
    "horizon": [20.0, "20", None],
    "budget": ["12", True],
    "described_seeds": ["2"],
    "max_jobs": [None, 1.5],
    "seconds_per_job": ["1 h", -1.0, math.nan],
    "bytes_per_job": [0],
    "refine": ["no", 0],
    "aa": ["yes"],
    "higher_is_better": ["lower"],
    "margin": [None, [1], True],
    "sizes": [["quick"], {"quick": [1]}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in FORMS.items() for value in values], ids=str)
def test_a_value_of_another_form_is_refused_with_its_key_and_the_form(key, value):
    own, _, arm = key.partition(".")
    every = {"learning_rates": {name: [1e-3] for name in BLOCK["arms"]}, "arms": BLOCK["arms"]}
    with pytest.raises(UsageError, match=f"^{key}=.* is not "):
        declare(BLOCK | {own: every[own] | {arm: value} if arm else value})


@pytest.mark.parametrize("arms", [{8: "rank=8"}, {False: "rank=8"}, {"": "rank=8"}])
def test_the_name_of_an_arm_is_text(arms):
    """As YAML reads `8: rank=8` and `off: svd_policy=never`."""
    with pytest.raises(UsageError, match=r"the name of an arm=.* is not text"):
        declare(BLOCK | {"arms": BLOCK["arms"] | arms})


def test_a_block_is_a_mapping():
    with pytest.raises(UsageError, match="study=3 of the study is not a mapping"):
        declare(3)


def test_a_text_and_a_rate_stand_for_a_list_of_themselves():
    own = {"common": "schedule.max_steps=3", "contrasts": "r8", "aims": "r8 better than r64", "learning_rates": 1e-3}
    study = declare(BLOCK | own)
    assert study.common == ["schedule.max_steps=3"]
    assert study.contrasts == ["r8"]
    assert study.aims == ["r8 better than r64"]
    assert study.learning_rates["r8"] == [1e-3]
    assert list(declare(BLOCK | {"sizes": {"quick": {"arms": "r64"}}}, "quick").arms) == ["r64", "aa"]
    rates = dict.fromkeys(BLOCK["arms"], 1e-3) | {"r8": [1, 3e-3]}
    assert declare(BLOCK | {"learning_rates": rates}).learning_rates["r8"] == [1.0, 3e-3]


def test_what_a_size_misspells_is_refused_at_every_size():
    with pytest.raises(UsageError, match="no 'seed'; did you mean"):
        declare(BLOCK | {"sizes": {"full": {"seed": [1]}}})


@pytest.mark.parametrize("metric", ["val_loss", "test_loss", "retention_loss"])
def test_a_share_of_the_gain_is_of_a_metric_whose_base_is_recorded(metric):
    block = BLOCK | {"margin": "5% of gain", "selection_metric": metric}
    assert declare(block).margin == "5% of gain"
    for other in ("val_bpb", "equal_loss_forgetting", "best_val_loss", "my_loss"):
        more = {"metric": other, "selection_metric": other, "higher_is_better": False}
        with pytest.raises(UsageError, match=f"of selection_metric={other} no run records the base's"):
            declare(block | more)


@pytest.mark.parametrize(
    ("change", "given", "word"),
    [
        ({}, {"data": ["alpaca", "planted"]}, "its axes are rank, method, optim, seed, optim.lr"),
        ({"baseline": "r63"}, {}, "r63"),
        ({"contrasts": ["r2", "r4", "r8", "r16", "full"]}, {}, "at most 4"),
        ({"contrasts": ["r64"]}, {}, "of an arm with itself"),
        ({"contrasts": ["r2/r63"]}, {}, "'r2/r63' is judged but no arm"),
        ({"contrasts": ["r2/r2"]}, {}, "of an arm with itself"),
        ({"contrasts": ["r2/r4", "r4/r2"]}, {}, "a pair twice"),
        ({"contrasts": ["r2", "r2/r64"]}, {}, "a pair twice"),
        ({"metric": "val_bpb"}, {}, "a share of val_loss .nats per token., and val_bpb is judged .bits per byte."),
        ({"metric": "test_accuracy"}, {}, "selection_metric of the same unit"),
        ({"described_seeds": 0}, {}, "no number of seeds"),
        ({"seeds": [0, 1]}, {}, "distinct"),
        ({"seeds": []}, {}, "distinct and some"),
        ({"seeds": [-1, 1]}, {}, "from 0 on"),
        ({"seeds": [1, 1001, 2, 3]}, {}, "those of the A/A arm are 1000 more"),
        ({"tune_seeds": []}, {}, "distinct and some"),
        ({"budget": 3}, {}, "first look"),
        ({"horizon": 12, "budget": 13}, {}, "the horizon"),
        ({"learning_rates": [math.nan]}, {}, "positive"),
        ({"learning_rates": [0.0]}, {}, "positive"),
        ({}, {"optim.lr": ["inf"]}, "positive"),
        ({}, {"seed": ["1", "1"]}, "distinct"),
        ({"learning_rates": []}, {}, "positive"),
        ({"learning_rates": [-1.0]}, {}, "positive"),
        ({"rungs": [20, 10]}, {}, "two tune_seeds"),
        ({"horizon": 7}, {}, "horizon"),
        ({"aa": False, "margin": "1%0"}, {}, "is no margin"),
        ({"armz": {}}, {}, "did you mean arms"),
        ({"arms": BLOCK["arms"] | {"/r": "rank=3"}}, {}, "'/r' of rank_sweep has a name that leads elsewhere"),
        ({"arms": BLOCK["arms"] | {"r": "model=b"}}, {"model": ["${oc.env:M}"]}, "name it plainly in the study's arms"),
        ({"arms": BLOCK["arms"] | {"r": "data.path=a"}}, {"data.path": ["/b/../a"]}, "a name that leads elsewhere"),
        ({"sizes": {"huge": {}}}, {}, "sizes are"),
        ({}, {"seed": ["one"]}, "whole number"),
        ({}, {"optim.lr": ["fast"]}, "no number"),
    ],
)
def test_a_declaration_that_cannot_be_judged_is_refused(change, given, word):
    with pytest.raises(UsageError, match=word):
        declare(BLOCK | change, given=given)


def test_a_budget_may_be_changed_up_to_the_horizon_and_the_seeds_there_are():
    study = declare(BLOCK | {"seeds": list(range(1, 21))})
    assert study.budget == 12
    assert with_budget(study, None) is study
    assert with_budget(study, 20).budget == 20
    for given, budget, word in (
        (study, 21, "horizon"),
        (study, 3, "first look"),
        (declare(BLOCK), 8, "more than the 6 seeds"),
        (declare(BLOCK, "quick"), 8, "too few to look at"),
    ):
        with pytest.raises(UsageError, match=word):
            with_budget(given, budget)


def test_what_must_be_declared_is_asked_for():
    with pytest.raises(UsageError, match="margin"):
        declare({key: value for key, value in BLOCK.items() if key != "margin"})
