"""torch.compile changes the speed of a run and nothing that it reports beyond rounding."""

import math
import shutil

import pytest
import torch
from jobs import losses, run
from torch import nn

from lab.errors import UsageError
from lab.training import compiled

# One block: compiling it takes most of a minute.
SHORT = ("model.architecture.num_hidden_layers=1", "schedule.max_steps=2", "evaluate.accuracy=false")
SHORT = (*SHORT, "evaluate.num_samples=0")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the CPU's code generator needs a C++ compiler")
def test_a_compiled_run_gives_the_losses_of_an_eager_one(tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run(tmp_path / "eager", "method=full", *SHORT)
    assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]
    run(tmp_path / "compiled", "method=full", *SHORT, "hardware.compile=true")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    rows = zip(losses(tmp_path / "eager"), losses(tmp_path / "compiled"), strict=True)
    for here, there in rows:
        for a, b in zip(here, there, strict=True):
            # float32, with products and sums fused in another order; the gradient's norm is the least exact of these
            assert a == b or math.isclose(float(a), float(b), rel_tol=1e-4)


def test_without_a_compiler_or_without_blocks_the_reason_is_said(monkeypatch):
    class Flat(nn.Module):
        pass

    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler on a CPU, and no-such-compiler is not found"):
        compiled.compile_blocks(Flat(), "cpu")
    with pytest.raises(UsageError, match="Flat has none"):
        compiled.compile_blocks(Flat(), "gpu")
