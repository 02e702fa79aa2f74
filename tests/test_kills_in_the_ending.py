"""A run may be killed at any phase behind its last steps, again and again, and ends as if nothing had happened."""

import signal

import pytest
from jobs import run
from killing import differing, start

from lab import record
from lab.errors import UsageError
from lab.report.card import card
from lab.report.document import markdown
from lab.report.run import load_run

# In the order in which a run meets them. The first is between the last step and its checkpoint.
PHASES = {
    "before the last checkpoint": ("lab.training.callbacks:Checkpoints.save", 3),
    "behind the last checkpoint": ("lab.training.callbacks:StopOnRequest.after_step", 2),  # of the steps that are left
    "at the beginning of the ending": ("lab.run.ending:Ending.run", 1),
    "in the validation": ("lab.run.ending:Ending._evaluate", 1),
    "in the export": ("lab.run.ending:Ending._export", 1),
    "in the test": ("lab.run.ending:Ending._evaluate", 2),
    "in the answers": ("lab.training.answers:Answers.accuracy", 1),
    "in a measure of the user's": ("lab.run.ending:_own_measure", 1),
    "in what was learned": ("lab.instruments.learned:measure", 1),
    "in the last line": ("lab.run.summary:print_end", 1),
    "in the record": ("lab.record:write", 3),  # the first two say that it runs again
}
FEW = ("before the last checkpoint", "behind the last checkpoint", "in the test", "in the record")
KINDS = {  # overrides, and the phases a run of that kind is killed in
    "lora": (("init=svd", "adapter.dropout=0.2", "hardware.micro_batch_size=2"), list(PHASES)),
    "full": (("method=full",), [phase for phase in PHASES if phase != "in what was learned"]),
    "best": (("method=full", "optim.lr=0.1", "select=best", "schedule.eval_every_n_steps=2"), FEW),
    "adalora": (("rank_strategy=adalora", "adapter.dropout=0.2"), FEW),
    "observed": (("method=full", "svd_policy=phase1", "svd_policy.every_n_steps=2", "svd_policy.k=4"), FEW),
}
COUNTED = "+metrics.parameters={_target_: test_kills_in_the_ending.parameters}"


def parameters(model, tokenizer):
    return sum(p.numel() for p in model.parameters()) + len(tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_at_every_phase_of_its_ending_ends_bitwise_as_the_whole_one(kind, tmp_path):
    overrides, phases = KINDS[kind]
    given = (*overrides, COUNTED)
    assert start(tmp_path / "whole", *given) == 0
    assert "parameters" in record.read(tmp_path / "whole").metrics
    for phase in phases:
        function, call = PHASES[phase]
        assert start(tmp_path / "cut", *given, kill_before=function, call=call) == -signal.SIGKILL, phase
        assert record.status_of(tmp_path / "cut") == "interrupted"
    assert start(tmp_path / "cut", *given) == 0
    result = record.read(tmp_path / "cut")
    assert result.status == "completed"
    assert kind != "best" or result.metrics["best_step"] < result.steps, "the last weights are the best"
    assert differing(tmp_path / "whole", tmp_path / "cut") == []


@pytest.mark.slow
def test_a_signal_in_the_ending_ends_the_run_as_interrupted_and_it_goes_on(tmp_path):
    given = (*KINDS["lora"][0], COUNTED)
    assert start(tmp_path / "whole", *given) == 0
    for phase in (
        "at the beginning of the ending",
        "in the export",
        "in the test",
        "in the answers",
        "in a measure of the user's",
    ):
        function, call = PHASES[phase]
        status = start(tmp_path / "cut", *given, kill_before=function, call=call, by=signal.SIGTERM)
        result = record.read(tmp_path / "cut")
        assert (status, result.status, result.steps) == (130, "interrupted", 8), phase
        assert "behind the last step, 8; resume=" in result.error["message"]
        assert result.error["signal"] == "SIGTERM"
    assert start(tmp_path / "cut", *given) == 0
    assert differing(tmp_path / "whole", tmp_path / "cut") == []


def broken(model, tokenizer):
    raise ZeroDivisionError("nothing to divide")


def needing(model, tokenizer, threshold):
    return threshold


def wordy(model, tokenizer):
    return "three"


def test_a_measure_that_fails_is_an_entry_in_the_record_and_all_else_is_there(tmp_path, capsys):
    mine = "test_kills_in_the_ending"
    result = run(
        tmp_path,
        "schedule.max_steps=1",
        f"+metrics.broken={{_target_: {mine}.broken}}",
        f"+metrics.wordy={{_target_: {mine}.wordy}}",
        COUNTED,
    )
    assert result.status == "completed"
    assert set(result.failed_measures) == {"broken", "wordy"}
    assert result.failed_measures["broken"] == "ZeroDivisionError: nothing to divide"
    assert "broken could not be measured: ZeroDivisionError: nothing to divide" in capsys.readouterr().out
    assert {"parameters", "test_loss", "test_accuracy", "learned_intruders"} <= result.metrics.keys()
    assert "broken" not in result.metrics
    assert (tmp_path / "adapter/adapter_model.safetensors").exists()
    assert "ZeroDivisionError" in markdown(card(load_run(tmp_path)))


@pytest.mark.parametrize(
    ("function", "name"),
    [("lab.training.answers:Answers.accuracy", "test_accuracy"), ("lab.instruments.learned:measure", "learned")],
)
def test_a_measure_of_ours_that_fails_costs_no_training_either(function, name, tmp_path, monkeypatch):
    module, path = function.split(":")
    monkeypatch.setattr(f"{module}.{path}", broken)
    result = run(tmp_path, "schedule.max_steps=1", COUNTED)
    assert (result.status, set(result.failed_measures)) == ("completed", {name})
    assert "parameters" in result.metrics


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        ("{_target_: test_kills_in_the_ending.paramters}", "paramters"),
        ("{_target_: no_such_package.measure}", "no_such_package"),
        ("{_target_: test_kills_in_the_ending.parameters, wrong: 1}", "cannot be called as measure"),
        ("{_target_: test_kills_in_the_ending.needing}", "cannot be called as measure"),
        ("{target: test_kills_in_the_ending.parameters}", "has no _target_"),
        ("3", "has no _target_"),
    ],
)
def test_a_measure_that_cannot_be_taken_is_refused_before_anything_heavy(node, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr("lab.launch.worker.run", lambda run_dir: pytest.fail("the run has started"))
    with pytest.raises(UsageError, match=sentence):
        run(tmp_path, f"+metrics.mine={node}")


def test_a_measure_may_not_take_the_name_of_ours(tmp_path):
    with pytest.raises(UsageError, match=r"metrics\.val_loss has the name of a measure that every run takes"):
        run(tmp_path, "+metrics.val_loss={_target_: test_kills_in_the_ending.parameters}")
