"""Forgetting along a run: where it is read off, what a run writes of it, and that a killed one goes on to the bit."""

import csv
import math

import pytest
import torch
from jobs import run
from killing import differing, start
from transformers import AutoModelForCausalLM

from lab import config
from lab.config import ConfigError
from lab.record.forgetting import at_loss

OSF = ("method=full", "svd_policy=osf", "svd_policy.effective_rank=4", "optim.lr=3e-3")
FEW = ("evaluate.accuracy=false", "evaluate.num_samples=0", "schedule.max_epochs=null", "schedule.max_steps=6")
EVERY = ("schedule.eval_every_n_steps=2", "schedule.save_every_n_steps=2", "evaluate.forgetting_curve=true")


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run with peft's OSF that measures forgetting along training, and its overrides."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "told.txt").write_text("\n\n".join(f"The square of {n} is {n * n}." for n in range(400)))
    given = (*OSF, *FEW, *EVERY, f"data.retention={folder / 'told.txt'}", "evaluate.forgetting_at=8.3")
    return folder / "run", given, run(folder / "run", *given)


def rows(run_dir, name):
    with (run_dir / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_value_is_read_off_the_line_between_the_evaluations_around_a_loss():
    losses, values = [4.0, 3.0, 2.0, 2.5, 1.0], [0.0, 1.0, 5.0, 6.0, 9.0]
    assert at_loss(losses, values, 3.5) == pytest.approx(0.5)
    assert at_loss(losses, values, 3.0) == 1.0
    assert at_loss(losses, values, 2.75) == pytest.approx(2.0)
    assert at_loss(losses, values, 2.2) == pytest.approx(4.2), "where it was first as low, and not after it had risen"
    assert at_loss(losses, values, 1.75) == pytest.approx(7.5)
    assert at_loss(losses, values, 4.0) == 0.0
    assert at_loss(losses, values, 9.0) == 0.0, "the base was lower from the start"
    assert at_loss(losses, values, 0.9) is None
    assert at_loss([], [], 1.0) is None


def test_on_curves_that_are_straight_in_each_other_any_cadence_reads_the_same():
    """Closed form: forgetting = 2 (first loss − loss), so that at 1.7 it is 2.6 however often it was measured."""
    for points in (2, 7, 50):
        losses = [3.0 * math.exp(-3 * i / points) for i in range(points + 1)]
        assert at_loss(losses, [2 * (3.0 - loss) for loss in losses], 1.7) == pytest.approx(2.6)


def test_a_run_measures_the_retention_text_at_every_evaluation_from_the_base_on(watched):
    run_dir, _, result = watched
    held, curve = rows(run_dir, "retention.csv"), {row["step"]: row for row in rows(run_dir, "metrics.csv")}
    assert [row["step"] for row in held] == ["0", "2", "4", "6"]
    assert all(row["val_loss"] == curve[row["step"]]["val_loss"] for row in held)
    metrics = result.metrics
    assert float(held[0]["retention_loss"]) == metrics["base_retention_loss"]
    assert float(held[-1]["retention_loss"]) == metrics["retention_loss"]
    assert metrics["forgetting"] == metrics["retention_loss"] - metrics["base_retention_loss"]
    losses = [float(row["val_loss"]) for row in held]
    above = next(i for i, loss in enumerate(losses) if loss <= 8.3)
    lost = [float(row["retention_loss"]) - metrics["base_retention_loss"] for row in held]
    x0, x1, y0, y1 = *losses[above - 1 : above + 1], *lost[above - 1 : above + 1]
    assert metrics["equal_loss_forgetting"] == pytest.approx(y0 + (x0 - 8.3) / (x0 - x1) * (y1 - y0))


def test_a_run_with_osf_says_what_it_kept_and_what_leaked_and_leaves_a_stock_model(watched):
    run_dir, _, result = watched
    kept = result.spectral["osf"]
    assert len(kept) == 14
    assert {layer["kept"] for layer in kept.values()} == {4}
    assert all(0 < layer["leak"] < 0.5 for layer in kept.values()), "AdamW leaks, and far from all of it"
    model = AutoModelForCausalLM.from_pretrained(run_dir / "model")
    assert not any("osf" in name for name in model.state_dict())
    last = torch.load(run_dir / "checkpoints/last.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    name = next(iter(kept))
    U, S, V = (last[f"{name}.osf_svd_params.default.{leaf}"] for leaf in ("U_low", "S_low", "V_low"))
    base = last[f"{name}.base_layer.weight"]
    high = torch.linalg.svd(base.double(), full_matrices=False)
    asked = (high.U[:, :4] * high.S[:4]) @ high.Vh[:4] + (U * S) @ V
    assert torch.allclose(model.get_submodule(name).weight.double(), asked, atol=1e-6)


def test_a_killed_run_goes_on_with_the_curve_and_with_what_is_kept_to_the_bit(watched, tmp_path):
    run_dir, given, _ = watched
    assert start(tmp_path / "killed", *given, kill_before="lab.training.checkpoint:save", call=3) == -9
    run(tmp_path / "killed", *given)
    assert differing(run_dir, tmp_path / "killed") == []


def test_a_tuning_job_measures_no_forgetting_and_says_so(watched, tmp_path, capsys):
    _, given, _ = watched
    result = run(tmp_path / "tune", *given, "evaluate.test=false", "schedule.max_steps=2")
    assert not (tmp_path / "tune" / "retention.csv").exists()
    assert "equal_loss_forgetting" not in result.metrics
    said = " ".join(capsys.readouterr().out.split())
    assert "evaluate.test=false: evaluate.forgetting_curve=true measures nothing here." in said


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("evaluate.forgetting_at=2.0",), "forgetting_at=2.0 is read off a curve; give evaluate.forgetting_curve=true"),
        (("evaluate.forgetting_curve=true", "data.retention=null"), "name one with data.retention"),
        (("evaluate.forgetting_curve=true", "evaluate.forgetting_at=0"), "forgetting_at must be above 0"),
    ],
)
def test_forgetting_that_cannot_be_measured_is_refused_by_name(overrides, says):
    with pytest.raises(ConfigError) as refused:
        config.compose(*overrides)
    assert says in str(refused.value)
