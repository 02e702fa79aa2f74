"""The pre-training bench: its contenders do the same work, and every column of its rows is measured."""

import pytest
import torch

from lab import config
from lab.bench import pretrain
from lab.config import instantiate
from lab.training.hardware import resolve

SETTINGS = ("model=nanochat_d4", "model.depth=1", "model.vocab_size=8192", "method=full", "optim=nanochat")
WORK = ("schedule.batch_size=1", "schedule.warmup_steps=0", "schedule.lr_scheduler=constant", "hardware=cpu")


def test_the_lab_takes_the_seeds_steps():
    settings = config.compose(*SETTINGS, *WORK, "hardware.precision=32-true", "schedule.max_steps=1000")
    model, hardware = instantiate.make(settings.model), resolve(settings.hardware, 1)
    nets = [model.load(torch.float32, 0) for _ in range(2)]
    steps = [pretrain.lab(nets[0], settings, hardware), pretrain.seed(nets[1], torch.float32)]
    ids = torch.randint(8192, (1, 64), generator=torch.Generator().manual_seed(0))
    for _ in range(4):
        ours, theirs = (step(ids) for step in steps)
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours < 8.5, "from ln 8192 = 9.01 it has learned the words by heart"


def test_every_row_holds_every_column():
    rows = pretrain.run(quick=True)
    assert [row["speedup"] for row in rows if row["contender"] == "seed 001"] == [1.0]
    assert all(row["seconds"] > 0 and row["peak_bytes"] > 0 and row["loss"] < 12 for row in rows)
    assert pretrain.table(rows).row_count == len(rows) == 3


def test_the_models_are_where_they_are_timed():
    model = instantiate.make(config.compose(*SETTINGS).model)
    device = torch.device("meta")
    nets = pretrain.on_device(model, 2, device)
    assert {p.device for net in nets for p in [*net.parameters(), *net.buffers()]} == {device}


def test_a_batch_of_texts_has_the_loss_of_its_texts():
    settings = config.compose(*SETTINGS, *WORK, "hardware.precision=32-true", "schedule.max_steps=1000")
    model, hardware = instantiate.make(settings.model), resolve(settings.hardware, 1)
    ids = torch.randint(8192, (3, 32), generator=torch.Generator().manual_seed(0))
    for make in (lambda net: pretrain.lab(net, settings, hardware), lambda net: pretrain.seed(net, torch.float32)):
        alone = [make(model.load(torch.float32, 0))(row[None]) for row in ids]
        assert make(model.load(torch.float32, 0))(ids) == pytest.approx(sum(alone) / 3, rel=1e-5)  # float32 sums
