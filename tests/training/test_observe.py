"""Observing a real run: what it writes is true, and training is bitwise what it is without."""

import pytest
import torch
from jobs import losses, run
from safetensors.torch import load_file

from lab import ledger, record, replay
from lab.svd_policy import decisions

TICKS = ("svd_policy.every_n_steps=2", "svd_policy.exact_every_n_ticks=2", "svd_policy.oversample=2")
OBSERVE = ("svd_policy=observe", "svd_policy.k=4", *TICKS)
PHASE1 = ("svd_policy=phase1", "svd_policy.every_n_steps=2", "svd_policy.warmup_steps=3")
# Dropout, accumulation, clipping and a checkpoint in between: everything that a look could disturb.
HARD = ("hardware.micro_batch_size=2", "optim.max_grad_norm=0.5", "schedule.save_every_n_steps=3")
FULL = ("method=full", "+model.architecture.attention_dropout=0.2", *HARD)
KINDS = {
    "full adamw": FULL,
    "full muon": (*FULL, "optim=muon"),
    "full checkpointing": (*FULL, "hardware.gradient_checkpointing=true"),
    "lora": ("init=svd", "adapter.dropout=0.2", *HARD),
    "lora checkpointing": ("adapter.dropout=0.2", "hardware.gradient_checkpointing=true", *HARD),
    "dora": ("adapter.use_dora=true", *HARD),
}


def weights(folder):
    path = folder / "model/model.safetensors"
    return load_file(path if path.exists() else folder / "adapter/adapter_model.safetensors")


def assert_same_training(one, other):
    assert losses(one) == losses(other)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_bitwise_the_same_with_and_without_observe(kind, tmp_path):
    run(tmp_path / "never", *KINDS[kind])
    result = run(tmp_path / "observe", *KINDS[kind], *OBSERVE)
    assert_same_training(tmp_path / "never", tmp_path / "observe")
    rows = ledger.read(tmp_path / "observe").rows
    assert [row.step for row in rows] == [step for step in (0, 2, 4, 6) for _ in range(14)]
    assert all(row.gradient.total > 0 and row.update.total > 0 for row in rows)
    assert result.seconds["analysis"] > 0


@pytest.fixture(scope="module")
def phase1(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phase1")
    run(folder, *FULL, *PHASE1)
    return folder


def test_replay_reproduces_the_live_decisions_exactly(phase1, capsys):
    replay.main([str(phase1)])
    assert "reproduces all 56 decisions of decisions.jsonl exactly" in capsys.readouterr().out
    replay.main([str(phase1), "svd_policy=phase1", "svd_policy.angle_stable=0.05,0.1,3"])
    assert "layers that fire" in capsys.readouterr().out


def test_the_record_says_what_could_happen_and_what_was_in_the_way(phase1):
    found = record.read(phase1).spectral
    assert len(found["before"]["reach"]) == len(found["after"]) / 2 == 14
    assert "optimal_lowrank_conditions cannot fire: reconstruction_safe < 0.01" in found["before"]["cannot_fire"][0]
    binding = {item["binding"] for item in found["after"] if item["reason"] == "optimal_lowrank_conditions"}
    assert binding == {"reconstruction_safe"}
    # k/m of the query projection, 64x64 at k=10
    assert found["before"]["chance"]["64x64"]["left"] == pytest.approx(10 / 64)


def test_a_resumed_run_has_every_tick_once_and_the_same(tmp_path, monkeypatch):
    from lab.training.callbacks import StopOnRequest

    class Killed(BaseException):
        pass

    def die(self, trainer, module, batch):
        if module.progress.step == 5:
            raise Killed

    run(tmp_path / "whole", *FULL, *OBSERVE)
    with monkeypatch.context() as patch:
        patch.setattr(StopOnRequest, "after_step", die)
        with pytest.raises(Killed):
            run(tmp_path / "cut", *FULL, *OBSERVE)
    path = tmp_path / "cut" / ledger.FOLDER / ledger.FILE
    assert [row.step for row in ledger.read(tmp_path / "cut").rows][-1] == 4  # behind the checkpoint of step 3
    path.write_bytes(path.read_bytes()[:-100])  # and the kill cut its last line
    run(tmp_path / "cut", *FULL, *OBSERVE)
    assert_same_training(tmp_path / "whole", tmp_path / "cut")
    assert path.read_bytes() == (tmp_path / "whole" / ledger.FOLDER / ledger.FILE).read_bytes()
    assert decisions.read(tmp_path / "cut") == decisions.read(tmp_path / "whole")
