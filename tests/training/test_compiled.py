"""torch.compile changes the speed of a run and nothing that it reports beyond rounding."""

import math
import shutil

import pytest
import torch
from jobs import losses, run
from torch import nn

from lab import ledger
from lab.errors import UsageError
from lab.training import compile

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
        compile.compile_blocks(Flat(), "cpu")
    with pytest.raises(UsageError, match="Flat has none"):
        compile.compile_blocks(Flat(), "gpu")


def test_adapted_layers_are_observed_also_where_blocks_are_compiled(tmp_path, monkeypatch):
    """Dynamo hides a block's parts from hooks; its backend `eager` makes no code, so that nothing is rounded anew."""
    torch._dynamo.reset()
    compile_block = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda block, **how: compile_block(block, backend="eager", **how))
    watching = ("svd_policy=observe", "svd_policy.every_n_steps=2", "svd_policy.k=2", "svd_policy.oversample=2")
    three = (
        "hardware.gradient_checkpointing=true",
        "model.architecture.num_hidden_layers=1",
        "schedule.max_steps=3",
        "schedule.max_epochs=null",
    )
    eager, hidden = (
        run(tmp_path / name, *three, *watching, f"hardware.compile={on}", "evaluate.accuracy=false")
        for name, on in (("eager", "false"), ("compiled", "true"))
    )
    assert eager.status == hidden.status == "completed"
    rows = ledger.read(tmp_path / "compiled").rows
    assert len(rows) == 2 * 7  # two ticks
    assert all(row.gradient.total > 0 for row in rows)
    written = [(tmp_path / name / ledger.FOLDER / ledger.FILE).read_bytes() for name in ("eager", "compiled")]
    assert written[0] == written[1]
    assert losses(tmp_path / "compiled") == losses(tmp_path / "eager")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_a_switched_run_compiles_two_graphs_for_a_layout_and_none_for_generating(tmp_path, monkeypatch):
    """Two layouts, all layers full and all low-rank: a graph each to train by and to score by, and of no layer more."""
    from lab import record

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_block = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda block, **how: compile_block(block, backend="eager", **how))
    policy = (
        *("svd_policy=scheduled", "svd_policy.every_n_steps=null", "svd_policy.residual=drop"),
        "svd_policy.schedule=[{step: 2, layers: all, action: compress, rank: 0.5}]",
    )
    short = ("method=full", *policy, "schedule.max_steps=4", "schedule.max_epochs=null", "evaluate.accuracy=false")
    for name, compiled in (("eager", "false"), ("compiled", "true")):
        run(tmp_path / name, *short, "evaluate.num_samples=2", f"hardware.compile={compiled}")
    graphs = record.read(tmp_path / "compiled").environment["compiled_graphs"]
    assert 4 <= graphs <= 2 * 2 + 2, graphs  # a batch of one, or an even length, may be told apart
    assert "compiled_graphs" not in record.read(tmp_path / "eager").environment
    for here, there in zip(losses(tmp_path / "eager"), losses(tmp_path / "compiled"), strict=True):
        assert all(a == b or math.isclose(float(a), float(b), rel_tol=1e-4) for a, b in zip(here, there, strict=True))
