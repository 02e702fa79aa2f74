"""AdaLoRA in real runs: its regulariser stays out of every loss, its end is the budget, its adapter is plain LoRA."""

import csv

import pytest
import torch
from jobs import losses, run
from peft import PeftModel
from test_schemes_in_runs import IDS

from lab import config
from lab.config import instantiate
from lab.editors.editing import Editing
from lab.editors.start import first_scheme
from lab.errors import Mismatch, UsageError
from lab.export import export_run, load_model
from lab.launch import resume

ADALORA = ("rank_strategy=adalora", "evaluate.accuracy=false", "evaluate.num_samples=0", "optim.lr=3e-3")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adalora")
    return folder, run(folder, *ADALORA, "hardware.micro_batch_size=4")


def rows(folder):
    with open(folder / "adalora.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_ranks_fall_to_the_budget_of_uniform_and_the_record_says_what_was_left(trained):
    folder, result = trained
    found = rows(folder)
    assert [int(row["step"]) for row in found] == list(range(1, 9))
    used = [int(row["used"]) for row in found]
    assert used == sorted(used, reverse=True)
    assert result.budget["at_start"] == 1.5 * result.budget["asked"]
    assert result.budget["used"] == used[-1]
    assert 0 <= result.budget["asked"] - used[-1] < 64 + 176  # the dearest layer's cost
    assert result.init["scheme"] == "adalora"
    assert result.init["step0_loss"] == result.init["base_loss"]


def test_the_regulariser_enters_no_loss_and_is_logged_apart(trained, tmp_path):
    folder, result = trained
    heavy = run(tmp_path, *ADALORA, "hardware.micro_batch_size=4", "rank_strategy.orthogonality=500")
    columns = ("step", "train_loss", "val_loss", "lr", "grad_norm")
    light, strong = (dict(zip(columns, losses(path)[1], strict=True)) for path in (folder, tmp_path))
    assert light["train_loss"] == strong["train_loss"]  # of step 1, before any update: a thousandfold weight is unseen
    assert float(strong["grad_norm"]) > 100 * float(light["grad_norm"])  # and it is in the objective
    assert float(rows(folder)[0]["orthogonality"]) > 1
    assert heavy.init["step0_loss"] == result.init["step0_loss"]


def test_splitting_a_batch_changes_nothing(trained, tmp_path):
    """To float32 rounding; the regulariser counts once a step, however many micro-batches there are."""
    folder, result = trained
    other = run(tmp_path, *ADALORA, "hardware.micro_batch_size=8")
    for mine, theirs in zip(rows(folder), rows(tmp_path), strict=True):
        assert float(mine["orthogonality"]) == pytest.approx(float(theirs["orthogonality"]), rel=1e-3)
    assert other.metrics["val_loss"] == pytest.approx(result.metrics["val_loss"], rel=1e-5)


def test_the_adapter_is_a_plain_lora_that_gives_the_runs_logits_and_can_be_cut_further(trained, tmp_path):
    folder, _result = trained
    net, _ = load_model(folder)
    settings = config.load(folder)
    torch.manual_seed(977)
    pristine = instantiate.make(settings.model).load(torch.float32, settings.seed)
    stock = PeftModel.from_pretrained(pristine, folder / "adapter").eval()
    assert stock.peft_config["default"].peft_type == "LORA"
    with torch.no_grad():
        ids = torch.tensor([IDS])
        assert (stock(input_ids=ids).logits - net(input_ids=ids).logits).abs().max() <= 1e-5
        with net.disable_adapter():
            assert not torch.equal(net(input_ids=ids).logits, stock(input_ids=ids).logits)
    assert 0 < export_run(folder, tmp_path / "cut", "adapter", 1)["dropped_energy"] < 1
    export_run(folder, tmp_path / "merged", "merged", None)


def test_a_run_whose_ranks_are_never_updated_aborts(tmp_path, monkeypatch):
    monkeypatch.setattr(Editing, "after_step", lambda self, trainer, module, batch: None)
    with pytest.raises(Mismatch, match="updated after 0 of 2 steps"):
        run(tmp_path, *ADALORA, "schedule.max_steps=2")


def test_a_run_whose_update_is_not_pefts_aborts(tmp_path, monkeypatch):
    monkeypatch.setattr("lab.editors.adalora.AdaLoraModel.update_and_allocate", lambda self, step: None)
    with pytest.raises(Mismatch, match="was left out when AdaLoRA cut ranks at step 1"):
        run(tmp_path, *ADALORA)


def test_a_run_of_adalora_has_an_end_that_cannot_be_moved(trained):
    from omegaconf import OmegaConf

    saved = OmegaConf.structured(config.load(trained[0]))
    saved.schedule.lr_scheduler = "constant"
    with pytest.raises(UsageError, match="schedule that depends on its end"):
        resume.extend(saved, 100)


def test_a_run_too_short_to_tell_what_matters_is_refused(tmp_path):
    with pytest.raises(UsageError, match="last cut would come after step 1 of 1, before a step has told"):
        run(tmp_path, *ADALORA, "schedule.max_steps=1")


def test_an_init_it_could_not_use_is_refused_whoever_wrote_it():
    class Mine:
        needs = frozenset()

    strategy = instantiate.make(config.compose(*ADALORA).rank_strategy)
    with pytest.raises(UsageError, match="init=Mine would not be used"):
        first_scheme(strategy, Mine())
