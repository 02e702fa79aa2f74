"""Two processes cannot be split by what one of them measured: rank 0 decides, factors, and hands out the tensors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
UP = "model.layers.0.mlp.up_proj"
RANK = """
import json, sys, tempfile
from pathlib import Path
import torch
import torch.distributed as dist
from lab import config
from lab.adapter.build import trained_in_full
from lab.adapter.structured import Structured
from lab.config import instantiate
from lab.editors.switch import Switcher
from lab.model import weights_sha256
from lab.svd_policy.switching import Move

rank, where = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + where, rank=rank, world_size=2)
run = config.compose("model=micro", "method=full", "svd_policy=scheduled")
net = instantiate.make(run.model).load(torch.float32, 0)
model, policy = Structured(net, trained_in_full(net), {}), instantiate.make(run.svd_policy)
optimizer = torch.optim.AdamW(net.named_parameters(), lr=1e-3)
generator = torch.Generator().manual_seed(0)
for p in net.parameters():
    p.grad = torch.randn(p.shape, generator=generator)
optimizer.step()
if rank == 1:  # what it holds of the layer, and of its moments, is spoilt: a switch must not use it
    weight = net.get_submodule("UP").weight
    weight.data.fill_(float("nan"))
    optimizer.state[weight]["exp_avg"].fill_(float("nan"))
switcher = Switcher(model, policy, {"UP": (176, 64)}, 9, Path(tempfile.mkdtemp()), torch.float32)
moves = [Move("UP", "compress", 9, "asked")] if rank == 0 else [Move("UP", "delta", 3, "nan")]
switcher.asked = lambda: moves
edits = switcher.after_step(21, optimizer)
layer = net.get_submodule("UP")
state = [float(v.double().sum()) for p in (layer.A, layer.B) for v in optimizer.state[p].values()]
print(json.dumps({"edits": [[e.module, vars(e.form)] for e in edits], "weights": weights_sha256(net), "state": state}))
dist.destroy_process_group()
""".replace("UP", UP)


@pytest.mark.slow
def test_a_rank_with_numbers_that_are_none_switches_as_rank_0_does(tmp_path):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "meet")], cwd=ROOT, stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    said = [json.loads(process.communicate(timeout=100)[0].splitlines()[-1]) for process in started]
    assert said[0] == said[1]
    ((module, form),) = said[0]["edits"]
    assert (module, form["form"], form["rank"], form["since"]) == (UP, "fading", 9, 21)
    assert all(value == value for value in said[0]["state"])
