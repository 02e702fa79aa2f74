"""lab.suggest rank: the truncation curve of a run, against dense SVDs of stock peft's merged weights."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from in_process import call
from jobs import run
from peft import PeftModel
from test_export import SHORT
from transformers import AutoModelForCausalLM

from lab import config, record
from lab.config import instantiate
from lab.data.corpus import load_corpus
from lab.suggest.__main__ import main
from lab.suggest.rank import Curve, Point, curve, ranks_to
from lab.suggest.tables import sentences

FORMS = {
    "plain": (),
    "an offset kept apart": ("init=pissa",),
    "an offset folded in": ("init=pissa", "init.offset=fold"),
    "another base": ("init=loftq",),
    "uneven ranks": ("rank_strategy=linear_decay",),
    "AdaLoRA": ("rank_strategy=adalora",),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short run; each is run once."""

    @cache
    def of(*overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("run")
        assert run(folder, *SHORT, "schedule.max_steps=4", *overrides).status == "completed"
        return folder

    return of


@pytest.fixture
def copied(trained, tmp_path):
    def of(*overrides: str) -> Path:
        return Path(shutil.copytree(trained(*overrides), tmp_path / "run"))

    return of


def edit(run_dir: Path, **fields) -> None:
    path = run_dir / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@torch.no_grad()
def loss_of(net, samples) -> float:
    """The mean over labelled tokens, an example at a time, from all logits."""
    nats = labels = 0.0
    for sample in samples:
        logits = net(input_ids=sample.input_ids[None]).logits[0, :-1].double()
        nats += float(F.cross_entropy(logits, sample.labels[1:], reduction="sum", ignore_index=-100))
        labels += int((sample.labels[1:] != -100).sum())
    return nats / labels


def dense_curve(run_dir: Path, ranks: list[int]) -> list[float]:
    """The losses of the base plus the best rank-k part of each merged weight's change; rank 0 is the base."""
    asked = config.load(run_dir)
    model = instantiate.make(asked.model)
    samples = load_corpus(instantiate.make(asked.data), model.tokenizer()).val.samples
    own = run_dir / "adapter" / "base"
    net = AutoModelForCausalLM.from_pretrained(own) if own.is_dir() else model.load(torch.float32, asked.seed)
    net.eval()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    merged = PeftModel.from_pretrained(net, run_dir / "adapter").merge_and_unload()
    changes = {name: merged.get_parameter(name).detach() - weight for name, weight in before.items()}
    parts = {name: torch.linalg.svd(change.double()) for name, change in changes.items() if change.any()}
    found = []
    with torch.no_grad():
        for rank in ranks:
            for name, (U, S, Vh) in parts.items():
                cut = (U[:, :rank] * S[:rank]) @ Vh[:rank]
                merged.get_parameter(name).copy_(before[name].double() + cut)
            found.append(loss_of(merged, samples))
    return found


@pytest.mark.parametrize("form", FORMS)
def test_each_point_is_the_loss_of_the_best_approximation_of_every_layers_change(form, trained):
    run_dir = trained(*FORMS[form])
    found = curve(run_dir)
    ranks = [point.rank for point in found.points]
    expected = dense_curve(run_dir, [0, *ranks])
    # float32 forward passes in another order of summation
    assert [found.base_loss, *(point.loss for point in found.points)] == pytest.approx(expected, rel=2e-6)
    assert found.base_loss - found.points[-1].loss > 0.01, "a curve of no height shows nothing"
    assert found.points[-1].loss == pytest.approx(record.read(run_dir).metrics["val_loss"], rel=2e-6)
    assert found.points[-1].energy == pytest.approx(1.0)
    assert all(one.energy <= two.energy for one, two in zip(found.points, found.points[1:], strict=False))
    assert found.doubled == ("offset" in form)


def test_the_ranks_are_powers_of_two_and_the_whole():
    assert [ranks_to(most) for most in (1, 2, 3, 8, 12)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]


def test_the_whole_changes_cost_is_what_the_run_trained_and_stored(trained):
    run_dir = trained()
    whole = curve(run_dir).points[-1]
    assert whole.parameters == record.read(run_dir).trainable_params
    stored = (run_dir / "adapter" / "adapter_model.safetensors").stat().st_size
    assert 0 < stored - whole.bytes < 4096  # the file's header


def test_the_knee_is_the_smallest_rank_that_keeps_its_share(trained):
    found = curve(trained())
    losses = {point.rank: point.loss for point in found.points}
    enough = found.base_loss - 0.99 * (found.base_loss - losses[4])
    assert found.knee == min(rank for rank, loss in losses.items() if loss <= enough)


def test_the_command_shows_the_curve_and_writes_only_where_it_is_told(copied, tmp_path):
    run_dir = copied()
    before = sorted(run_dir.rglob("*"))
    said = call(lambda: main(["rank", str(run_dir)]), cwd=tmp_path)
    assert said.code == 0
    assert "advice from one run, no verdict" in said.out
    assert sorted(run_dir.rglob("*")) == before
    call(lambda: main(["rank", str(run_dir), "--to", str(run_dir)]), cwd=tmp_path)
    written = json.loads((run_dir / "suggest_rank.json").read_text())
    assert written["schema"] == 1
    assert written["knee"] == curve(run_dir).knee
    assert [point["rank"] for point in written["points"]] == [1, 2, 4]


def test_a_run_that_gained_nothing_has_no_knee(trained, tmp_path):
    run_dir = trained("optim.lr=1e-30")  # a change that is not 0 and moves no loss
    found = curve(run_dir)
    assert found.gain == 0
    assert found.knee is None
    assert all(point.kept is None for point in found.points)
    assert "no gain to keep" in call(lambda: main(["rank", str(run_dir)]), cwd=tmp_path).out


def sentence(tmp_path: Path, *arguments: object) -> str:
    return call(lambda: main(["rank", *map(str, arguments)]), cwd=tmp_path).sentence


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("method=full",), "trained every weight (method=full), so it has no adapter to cut"),
        (("adapter.use_dora=true",), "trained with DoRA, which also rescales whole rows"),
        (("optim.lr=1e-50",), "changes nothing (every layer's change is 0)"),
    ],
)
def test_a_run_without_a_low_rank_change_is_refused(overrides, said, trained, tmp_path):
    assert said in sentence(tmp_path, trained(*overrides))


def test_what_is_no_run_is_refused(trained, tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    assert "is no folder" in sentence(tmp_path, tmp_path / "nowhere")
    assert "is a study; name one of its jobs" in sentence(tmp_path, tmp_path / "study")
    assert "is no run directory" in sentence(tmp_path, tmp_path / "empty")


@pytest.mark.parametrize("status", ["running", "interrupted", "diverged", "failed", "stopped"])
def test_an_unfinished_run_is_refused_by_how_it_ended(status, copied, tmp_path):
    run_dir = copied()
    edit(run_dir, status=status)
    how = "was interrupted" if status == "running" else status  # without a lock it is not running any more
    assert how in sentence(tmp_path, run_dir)


def test_a_run_whose_data_or_config_are_gone_is_refused(copied, tmp_path):
    run_dir = copied()
    edit(run_dir, data=json.loads((run_dir / "result.json").read_text())["data"] | {"sha256": "0" * 64})
    assert "the data of" in sentence(tmp_path, run_dir)
    (run_dir / "config.yaml").unlink()
    assert "holds no config.yaml" in sentence(tmp_path, run_dir)


def test_a_place_that_can_be_no_folder_is_refused_before_anything_is_read(trained, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be a folder" in sentence(tmp_path, trained(), "--to", tmp_path / "file")


def test_a_cut_that_gains_more_than_the_whole_is_said_to_be_one():
    def made(*losses):
        gain = 2.0 - losses[-1]
        points = [
            Point(rank, loss, (2.0 - loss) / gain, rank / 8, 100 * rank, 400 * rank)
            for rank, loss in zip((1, 4, 8), losses, strict=True)
        ]
        return Curve("run", 2.0, points, None, 100, doubled=False)

    early = sentences(made(1.97, 1.98, 1.99))
    assert "* rank 1 is the smallest of these" in early[0]
    assert any("rank 1 alone gains more than the whole change (300% of it)" in said for said in early)
    usual = sentences(made(1.5, 1.1, 1.103))  # a third of a hundredth more
    assert not any("alone gains more" in said for said in usual)
