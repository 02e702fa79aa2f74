"""A run goes on, and is exported, on a machine that computes otherwise; and a run from before still does."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from jobs import run
from safetensors.torch import load_file

from lab import config, export, record
from lab.config import instantiate
from lab.errors import UsageError
from lab.launch.job import launch
from lab.model import weights_sha256
from lab.report.comparison import refusal
from lab.report.study import load_study
from lab.structure import Structure
from lab.training import checkpoint, hardware
from lab.training.callbacks import StopOnRequest

BEFORE = (
    Path(__file__).parent / "fixtures" / "runs_before_stored_sha256"
)  # made at commit e3d9863, killed at step 3 of 4
BEFORE_STRUCTURE = Path(__file__).parent / "fixtures" / "runs_before_structure"  # at 361bdbb, killed at step 5 of 6
AUTO = ("hardware.precision=auto", "schedule.max_steps=4", "schedule.save_every_n_steps=2", "evaluate.accuracy=false")


class Killed(BaseException):
    """Stands for the end of a process."""


def interrupted(folder, *overrides):
    """A run that a kill ended behind step 3."""

    def die(self, trainer, module, batch):
        if module.run.progress.step == 3:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopOnRequest, "after_step", die)
        with pytest.raises(Killed):
            run(folder, *AUTO, *overrides)


def go_on(folder, *overrides):
    """Resume from the saved config, as `resume=` does, with what may be given beside it."""
    saved = config.load(folder)
    for override in overrides:
        key, _, value = override.partition("=")
        assert key in ("hardware.precision", "hardware.micro_batch_size")
        setattr(saved.hardware, key.removeprefix("hardware."), int(value) if value.isdigit() else value)
    launch(saved, folder, choices={}, overrides=[], alone=False)
    return record.read(folder)


def losses(folder):
    """(step, training loss) of every row that has one."""
    rows = csv.DictReader((folder / "metrics.csv").open())
    return [(int(row["step"]), float(row["train_loss"])) for row in rows if row["train_loss"]]


@pytest.mark.parametrize(("before", "after"), [(4, 2), (4, 8), (2, 8), (8, 2)])
def test_another_split_goes_on_with_the_same_batches_to_the_same_end(before, after, tmp_path):
    """Behind step 3, where a step's micro-batches are another number than those of the new split."""
    steps = ("schedule.max_steps=6", "schedule.save_every_n_steps=3", "schedule.log_every_n_steps=1")
    run(tmp_path / "whole", *AUTO, *steps, f"hardware.micro_batch_size={after}")
    interrupted(tmp_path / "run", *steps, f"hardware.micro_batch_size={before}")
    result = go_on(tmp_path / "run", f"hardware.micro_batch_size={after}")
    assert (result.status, result.steps) == ("completed", 6)
    found, wanted = losses(tmp_path / "run"), losses(tmp_path / "whole")
    assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6]
    # A split sums in another order: 1e-6 of a loss of 8 is what float32 keeps.
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in wanted], rel=1e-4)


def bf16(monkeypatch, has):
    monkeypatch.setattr(hardware, "cpu_has_bf16", lambda: has)


@pytest.mark.parametrize("has", [True, False], ids=["from bf16 to none", "from none to bf16"])
@pytest.mark.parametrize(
    "overrides", [("model=tiny",), ("model=micro",), ("method=full",)], ids=["lora", "micro", "full"]
)
def test_what_auto_came_to_is_kept_where_a_run_goes_on_and_is_exported(overrides, has, tmp_path, monkeypatch, capsys):
    bf16(monkeypatch, has)
    interrupted(tmp_path / "run", *overrides)
    bf16(monkeypatch, not has)
    result = go_on(tmp_path / "run")
    assert result.status == "completed"
    assert result.environment["precision"] == ("bf16-mixed" if has else "32-true")
    said = capsys.readouterr().out
    assert ("slow: this processor has no bf16 instructions" in " ".join(said.split())) == has
    net, _ = export.load_model(tmp_path / "run")
    held = {p.dtype for name, p in net.named_parameters() if "lora_" not in name and "offset" not in name}
    assert held == {torch.bfloat16 if has and "method=full" not in overrides else torch.float32}


def test_a_lora_run_may_go_on_in_another_precision_and_its_base_is_still_the_same(tmp_path):
    interrupted(tmp_path, "model=tiny", "hardware.precision=32-true")
    assert go_on(tmp_path, "hardware.precision=bf16-true").status == "completed"


def test_another_base_is_refused_whatever_the_precision(tmp_path):
    base = tmp_path / "base"
    tiny = config.compose("model=tiny").model
    instantiate.make(tiny).load(torch.float32, 0).save_pretrained(base)
    instantiate.make(tiny).tokenizer().save_pretrained(base)
    interrupted(tmp_path / "run", "model=pretrained", f"model.name_or_path={base}")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-6
    from safetensors.torch import save_file

    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="the base has changed since the run began") as refused:
        go_on(tmp_path / "run")
    assert "precision" not in str(refused.value)


def test_the_stored_hash_is_the_one_of_the_model_held_as_stored_and_the_same_in_every_format(tmp_path):
    model = instantiate.make(config.compose("model=tiny").model)
    assert model.stored_sha256(0) == weights_sha256(model.load(torch.bfloat16, 0))
    assert model.stored_sha256(0) != weights_sha256(model.load(torch.float32, 0))
    net = model.load(torch.bfloat16, 0)
    net.save_pretrained(tmp_path / "shards", max_shard_size="2MB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    (tmp_path / "bin").mkdir()
    torch.save(load_file(model_file()), tmp_path / "bin/pytorch_model.bin")
    for folder in ("shards", "bin"):
        made = type(model)(**{**vars(model), "name_or_path": str(tmp_path / folder)})
        assert made.stored_sha256(0) == model.stored_sha256(0), folder
    scratch = instantiate.make(config.compose("model=micro").model)
    assert scratch.stored_sha256(3) == weights_sha256(scratch.load(torch.float32, 3)) != scratch.stored_sha256(4)


def model_file():
    from lab.model import hub

    return hub.shipped("base") / "model.safetensors"


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_run_from_before_goes_on_and_is_exported_on_either_kind_of_processor(kind, tmp_path, monkeypatch):
    bf16(monkeypatch, False)  # the runs were made where there is bf16
    shutil.copytree(BEFORE / kind, tmp_path / "run")
    result = go_on(tmp_path / "run")
    assert (result.status, result.steps) == ("completed", 4)
    assert result.environment["precision"] == "bf16-mixed"
    whole, gone_on = rows(tmp_path / "run/metrics_of_the_whole_run.csv"), rows(tmp_path / "run/metrics.csv")
    assert [row["step"] for row in gone_on] == [row["step"] for row in whole]
    for row, expected in zip(gone_on, whole, strict=True):
        for column in ("train_loss", "val_loss", "grad_norm"):
            if expected[column]:  # bf16 has 8 bits, and another processor sums in another order
                assert float(row[column]) == pytest.approx(float(expected[column]), rel=2e-3), (row["step"], column)
    said = export.export_run(tmp_path / "run", tmp_path / "out", "adapter" if kind == "lora" else "merged", None)
    assert Path(said["to"]).is_dir()


@pytest.mark.parametrize("kind", ["adalora", "loftq", "observed"])
def test_a_run_from_before_structures_had_a_type_goes_on_as_it_would_have_and_is_exported(kind, tmp_path):
    shutil.copytree(BEFORE_STRUCTURE / kind, tmp_path / "run")
    result = go_on(tmp_path / "run")
    assert (result.status, result.steps, result.switches) == ("completed", 6, 0)
    whole, gone_on = rows(tmp_path / "run/metrics_of_the_whole_run.csv"), rows(tmp_path / "run/metrics.csv")
    assert [row["step"] for row in gone_on] == [row["step"] for row in whole]
    for row, expected in zip(gone_on, whole, strict=True):
        for column in ("train_loss", "val_loss", "grad_norm"):
            if expected[column]:  # float32, on whatever processor: sums in another order
                assert float(row[column]) == pytest.approx(float(expected[column]), rel=1e-4), (row["step"], column)
    saved = checkpoint.load(tmp_path / "run/checkpoints/last.ckpt")["structure"]
    assert Structure.from_plain(saved["layers"]).ranks.keys() == result.ranks.keys()
    said = export.export_run(tmp_path / "run", tmp_path / "out", "adapter", None)
    assert Path(said["to"]).is_dir()


def test_a_study_of_runs_from_before_and_after_has_one_base(tmp_path):
    for name, seed in (("0_before", 0), ("1_after", 0)):
        run(tmp_path / name, "model=tiny", "schedule.max_steps=1", "evaluate.accuracy=false", f"seed={seed}")
    path = tmp_path / "0_before/result.json"
    raw = json.loads(path.read_text())
    del raw["model"]["stored_sha256"], raw["failed_measures"]
    path.write_text(json.dumps(raw))
    before, after = load_study(tmp_path).runs
    assert before.base == after.base == after.record.model["stored_sha256"]


def test_what_auto_came_to_on_two_machines_is_not_compared(tmp_path, monkeypatch):
    for name, has in (("0_one", True), ("1_other", False)):
        bf16(monkeypatch, has)
        run(tmp_path / name, "model=tiny", *AUTO)
    one, other = (Arms(run) for run in load_study(tmp_path).runs)
    assert "precisions that hardware.precision=auto came to differ" in refusal(one, other)
    for each in (*one.runs, *other.runs):  # asked for, it is what the arms are about
        each.record.config["hardware"]["precision"] = each.record.environment["precision"]
    assert refusal(one, other) == ""


class Arms:
    """An arm of one run."""

    def __init__(self, run):
        self.name, self.runs = run.name, (run,)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
