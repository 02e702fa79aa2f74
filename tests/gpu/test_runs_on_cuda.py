"""Runs on a GPU: fitted to its memory, exported, quantised, killed and resumed."""

import importlib.util
import signal
import subprocess
import time

import pytest
import torch
from jobs import command, losses, run, shell, with_checkout
from peft import PeftModel
from safetensors.torch import load_file

from lab import config, export
from lab.config import Hardware, instantiate
from lab.data.encode import Sample
from lab.errors import UsageError
from lab.training import hardware, memory

ON = ("hardware=auto", "evaluate.num_samples=0", "evaluate.accuracy=false")
HARD = (*ON, "init=svd", "adapter.dropout=0.2", "hardware.micro_batch_size=2", "schedule.save_every_n_steps=2")


def test_the_micro_batch_is_halved_until_it_fits_and_the_memory_is_given_back(cuda):
    """A share of the card that holds a few texts' logits and not all: 64 x 200 x 4096 in float32 are 210 MB."""
    net = instantiate.make(config.compose("model=tiny").model).load(torch.float32, 0).to(cuda)
    ids = torch.randint(4, 4096, (200,))
    samples = [Sample(input_ids=ids, labels=ids, num_bytes=200) for _ in range(64)]
    resolved = hardware.resolve(Hardware(accelerator="gpu", precision="32-true", micro_batch_size=64), 64)
    roomy = memory.fit(net, resolved, samples, 0, besides=0)
    assert (roomy.micro, roomy.accumulate) == (64, 1)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(cuda)
    torch.cuda.set_per_process_memory_fraction((before + 400e6) / torch.cuda.mem_get_info(cuda)[1], cuda)
    try:
        tight = memory.fit(net, resolved, samples, 0, besides=0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, cuda)
    assert tight.micro < 64
    assert tight.micro * tight.accumulate == 64
    assert torch.cuda.memory_allocated(cuda) == before
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_an_export_of_a_run_on_cuda_has_its_logits_in_stock_peft(precision, tmp_path, cuda):
    base = tmp_path / "base"
    model = instantiate.make(config.compose("model=tiny").model)
    model.load(torch.float32, 0).save_pretrained(base)
    model.tokenizer().save_pretrained(base)
    of_base = ("model=pretrained", f"model.name_or_path={base}", "init=svd", f"hardware.precision={precision}")
    run(tmp_path / "run", *ON, *of_base)
    ours, _ = export.load_model(tmp_path / "run")
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    stock = PeftModel.from_pretrained(model.load(dtype, 0), tmp_path / "run/adapter")
    ids = torch.randint(4, 4096, (2, 30), device=cuda)
    with torch.no_grad():
        expected, found = (net.to(cuda)(input_ids=ids).logits.float() for net in (ours, stock))
    # bfloat16 keeps eight bits, and ours rounds shares of a pair's change, and peft shares of the pairs
    assert torch.allclose(found, expected, rtol=0, atol=1e-3 if precision == "32-true" else 0.25)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_a_base_in_nf4_trains_and_stays_packed(tmp_path):
    result = run(tmp_path, *ON, "model=tiny", "model.quantization=nf4", "init=pissa", "schedule.max_steps=3")
    assert result.status == "completed"
    assert result.model["quantization"] == "nf4"
    # NF4 keeps four bits of a weight: near the base, and not the base
    assert result.init["step0_loss"] == pytest.approx(result.init["base_loss"], rel=1e-2)


def test_a_compiled_run_has_the_losses_of_an_eager_one(tmp_path):
    short = (
        *ON,
        "schedule.max_steps=3",
        "schedule.max_epochs=null",
        "evaluate.test=false",
        "hardware.precision=32-true",
    )
    run(tmp_path / "eager", *short)
    run(tmp_path / "compiled", *short, "hardware.compile=true")
    for eager, compiled in zip(losses(tmp_path / "eager"), losses(tmp_path / "compiled"), strict=True):
        for a, b in zip(eager[:3], compiled[:3], strict=True):
            assert a == b or float(b) == pytest.approx(float(a), rel=1e-3)


def test_a_run_that_is_killed_and_resumed_ends_bitwise_as_if_it_had_not_been(tmp_path):
    """In processes of their own: what cuBLAS is told must be told before CUDA starts, and SIGKILL ends a process.

    How far the two are apart without hardware.deterministic, `lab.bench gpu` says.
    """
    lines = (*HARD, "hardware.deterministic=true", "schedule.max_epochs=8")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert shell(*lines, f"hydra.run.dir={whole}", cwd=tmp_path).returncode == 0
    _kill(command(*lines, f"hydra.run.dir={cut}"), cut, tmp_path)
    done = shell(f"resume={cut}", cwd=tmp_path, small=False)
    assert done.returncode == 0, done.stderr
    one, other = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (whole, cut))
    assert losses(cut) == losses(whole)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def _kill(line, run_dir, cwd):
    """Start a run and kill it behind its fifth step."""
    process = subprocess.Popen(line, cwd=cwd, env=with_checkout(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = run_dir / "metrics.csv"
    while process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) > 6:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return
        time.sleep(0.005)
    raise AssertionError(f"it had ended with {process.returncode} before it could be killed")


def test_deterministic_algorithms_are_there_for_all_that_a_run_does(tmp_path):
    """torch raises where an operation has none; observing, editing ranks and judging answers take part."""
    observed = ("svd_policy=observe", "svd_policy.every_n_steps=2", "svd_policy.k=2", "svd_policy.oversample=2")
    for kind in (("rank_strategy=adalora",), ("method=full",)):
        line = (*kind, *observed, "hardware=auto", "hardware.deterministic=true", "schedule.max_steps=6")
        done = shell(*line, f"hydra.run.dir={tmp_path / kind[0]}", cwd=tmp_path)
        assert done.returncode == 0, (kind, done.stderr[-2000:])


def test_a_process_without_room_ends_in_one_sentence(tmp_path, cuda):
    resolved = hardware.resolve(Hardware(accelerator="gpu", precision="32-true", micro_batch_size=1), 1)
    net = instantiate.make(config.compose("model=tiny").model).load(torch.float32, 0).to(cuda)
    ids = torch.randint(4, 4096, (8,))
    beyond = 2 * torch.cuda.mem_get_info(cuda)[1]
    with pytest.raises(UsageError, match=r"not even one example of 8 tokens fits in the memory of .*GPU|NVIDIA"):
        memory.fit(net, resolved, [Sample(input_ids=ids, labels=ids, num_bytes=8)], 0, besides=beyond)
