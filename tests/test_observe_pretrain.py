"""experiment=observe_pretrain at a tiny size: what it is made of, what it records, and that it resumes bitwise."""

import math

import pytest
import torch
from jobs import losses
from safetensors.torch import load_file

from lab import config, record
from lab.launch import job

TINY = (
    "experiment=observe_pretrain",
    "model.depth=1",
    "model.vocab_size=8192",
    "svd_policy=never",
    "data=text",
    "data.max_length=32",
    "schedule.max_steps=4",
    "schedule.eval_every_n_steps=2",
    "schedule.log_every_n_steps=1",
    "schedule.save_every_n_steps=2",
    "evaluate.max_examples=5",
    "evaluate.sample_tokens=2",
    "logger=none",
    "hardware=cpu",
    "hardware.threads=1",
    "hardware.precision=32-true",
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "some.txt"
    file.write_text("\n\n".join(f"{n} is followed by {n + 1}, and {n + 1} by {n + 2}." for n in range(200)))
    return file


def run(run_dir, text):
    run_dir.mkdir(parents=True, exist_ok=True)
    given = [*TINY, f"data.path={text}"]
    job.launch(config.compose(*given), run_dir, choices={}, overrides=given, alone=False)
    return record.read(run_dir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("whole")
    run(folder, text)
    return folder


def test_the_default_is_the_seeds_run():
    asked = config.compose("experiment=observe_pretrain")
    assert asked.method == "full"
    assert asked.model["vocab_size"] == 65536
    assert asked.schedule.batch_size * asked.data["max_length"] == 512
    assert asked.schedule.max_steps == 2000
    assert asked.svd_policy["every_n_steps"] == 20
    assert asked.data["corpora"] == ["docs", "code"]
    assert len(asked.evaluate.prompts) == 7


def test_the_record_has_bits_per_byte_their_minimum_and_the_unused_ids(whole):
    result = record.read(whole)
    assert result.status == "completed"
    assert result.model["unused_ids"] == 4096
    assert result.metrics["base_val_loss"] == pytest.approx(math.log(8192), rel=1e-5)
    assert result.data["val_examples"] == 5
    rows = [line.split(",") for line in (whole / "metrics.csv").read_text().splitlines()]
    bpb = [float(row[rows[0].index("val_bpb")]) for row in rows[1:] if row[rows[0].index("val_bpb")]]
    assert len(bpb) == 2
    assert result.metrics["best_val_bpb"] == pytest.approx(min(bpb), rel=1e-9)
    assert bpb[-1] < result.metrics["base_val_loss"] / math.log(2), "it has learned"


def test_a_run_with_muon_resumes_bitwise(whole, text, tmp_path, monkeypatch):
    from lab.training.callbacks import StopOnRequest

    class Killed(BaseException):
        pass

    def die(self, trainer, module, batch):
        if module.run.progress.step == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StopOnRequest, "after_step", die)
        with pytest.raises(Killed):
            run(tmp_path, text)
    run(tmp_path, text)
    assert losses(tmp_path) == losses(whole)
    one, other = (load_file(folder / "model/model.safetensors") for folder in (whole, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)
