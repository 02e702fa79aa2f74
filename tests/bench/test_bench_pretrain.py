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
