"""CUDA computes what the CPU does, to float32's rounding in another order."""

import copy

import pytest
import torch
from jobs import losses, run

from lab import config
from lab.adapter.build import build, planned
from lab.adapter.initialise import initialise
from lab.bench import pretrain
from lab.bench.init_cases import our_schemes
from lab.config import Hardware, instantiate
from lab.layer import Evidence, find_targets
from lab.spectral.iteration import first_effort, iterate
from lab.spectral.tracker import Tracker
from lab.training.head_loss import head_loss
from lab.training.loss import Scorer

FLOAT32 = ("hardware.precision=32-true", "hardware=auto", "hardware.micro_batch_size=8")
CPU = torch.device("cpu")
NO_EVIDENCE = ("pissa", "olora", "orthogonal", "milora")


@pytest.fixture(autouse=True)
def _no_tf32():
    """What the tolerances below are about is float32 itself; TensorFloat-32 has ten bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("cap", [None, 15.0])
def test_the_heads_pass_gives_loss_and_gradients_of_the_cpu(cap, cuda):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(300, 64, generator=generator), torch.randn(9000, 64, generator=generator) / 8
    targets = torch.randint(9000, (300,), generator=generator)
    found = []
    for device in (CPU, cuda):
        h, w = (tensor.detach().to(device).requires_grad_() for tensor in (hidden, weight))
        loss = head_loss(h, w, targets.to(device), cap)
        loss.backward()
        found.append([each.detach().cpu() for each in (loss, h.grad, w.grad)])
    for here, there in zip(*found, strict=True):
        assert torch.allclose(there, here, rtol=1e-3, atol=1e-3 * float(here.abs().max()))


def test_the_loss_of_a_model_is_the_cpus(cuda):
    model = instantiate.make(config.compose("model=tiny").model)
    net = model.load(torch.float32, 0)
    ids = torch.randint(4, 4096, (3, 40), generator=torch.Generator().manual_seed(0))
    nats = []
    for device in (CPU, cuda):
        net.to(device)
        with Scorer(net, device, autocast=False) as scorer, torch.no_grad():
            nats.append(float(scorer.nats(ids.to(device), ids.to(device))))
    assert nats[1] == pytest.approx(nats[0], rel=1e-3)


@pytest.mark.parametrize("scheme", NO_EVIDENCE)
def test_step_0_on_cuda_is_the_base(scheme, cuda):
    model = instantiate.make(config.compose("model=tiny").model)
    net = model.load(torch.float32, 0).to(cuda)
    ids = torch.randint(4, 4096, (2, 30), device=cuda)
    with torch.no_grad():
        before = net(input_ids=ids).logits
        targets = find_targets(net)
        adapted = build(net, planned(targets, {target.name: 8 for target in targets}, scaling=4.0))
        initialise(adapted, our_schemes()[scheme], targets, {target.name: Evidence() for target in targets}, seed=0)
        after = adapted(input_ids=ids).logits
    assert torch.allclose(after, before, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", [("init=random",), ("init=svd",), ("init=pissa",), ("method=full",)], ids=" ".join)
def test_a_run_on_cuda_has_the_losses_of_one_on_the_cpu(kind, tmp_path):
    short = ("schedule.max_steps=4", "schedule.max_epochs=null", "evaluate.test=false", "evaluate.num_samples=0")
    here = run(tmp_path / "cpu", *kind, *short)
    there = run(tmp_path / "cuda", *kind, *short, *FLOAT32)
    assert (here.environment["accelerator"], there.environment["accelerator"]) == ("cpu", "gpu")
    assert there.init["step0_loss"] == pytest.approx(here.init["step0_loss"], rel=1e-3)
    for cpu, gpu in zip(losses(tmp_path / "cpu"), losses(tmp_path / "cuda"), strict=True):
        for a, b in zip(cpu[:3], gpu[:3], strict=True):
            assert a == b or float(b) == pytest.approx(float(a), rel=1e-3)
    assert there.peak_memory_bytes > 0


def test_the_spectra_of_a_run_are_followed_as_on_the_cpu(cuda):
    """The same tracker along the same walk: values, energies and angles, and its state goes between the two."""
    generator = torch.Generator().manual_seed(0)
    shapes, k = [(160, 96), (96, 160), (96, 96)], 6
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    for weight in weights:
        weight[:k, :k] += torch.diag(torch.linspace(60, 40, k))
    trackers = [Tracker(k=k, oversample=8, engine="warm", exact_every_n_ticks=3, seed=0) for _ in range(2)]
    for tick in range(5):
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        found = []
        for tracker, device in zip(trackers, (CPU, cuda), strict=True):
            named = {str(i): weight.to(device) for i, weight in enumerate(weights)}
            slopes = {str(i): gradient.to(device) for i, gradient in enumerate(gradients)}
            found.append(tracker.tick(tick, named, slopes, slopes))
        for name, here in found[0].items():
            there = found[1][name]
            assert there.singular_values[:k] == pytest.approx(here.singular_values[:k], rel=1e-4)
            assert there.stable_rank == pytest.approx(here.stable_rank, rel=1e-4)
            assert there.tail_error(k) == pytest.approx(here.tail_error(k), abs=1e-4)
            for side in ("left", "right", "core"):
                energy = here.fraction("gradient", side, k)
                assert there.fraction("gradient", side, k) == pytest.approx(energy, abs=1e-4)
            if tick:
                # both are off by the square of what their directions are off by, 3e-3 rad at most
                assert there.angle(k) == pytest.approx(here.angle(k), abs=1e-4)
        weights = [weight + 0.05 * torch.randn(weight.shape, generator=generator) for weight in weights]


@pytest.mark.parametrize("width", [160, 1400])  # in one batch, as on a CPU, and beyond a CPU's limit
def test_a_steep_spectrum_is_followed_as_on_the_cpu(width, cuda):
    """What a filter of a steep spectrum makes is 1e19 and more, which CUDA's QR squares."""
    generator = torch.Generator().manual_seed(4)
    U, _, Vh = torch.linalg.svd(torch.randn(width + 40, width, generator=generator), full_matrices=False)
    S = torch.cat([torch.linspace(40, 8, 16), torch.linspace(7, 1, width - 16)])
    W, start = (U * S) @ Vh, torch.randn(1, width, 32, generator=generator)
    effort = [first_effort(width, cuda)]
    found = iterate([W.to(cuda)], start.to(cuda), [9.0], 16, effort, tolerance=1e-3)
    assert found.S[0, :16].tolist() == pytest.approx(S[:16].tolist(), rel=1e-3)


def test_a_step_of_pre_training_is_the_cpus(cuda):
    settings = config.compose(
        "model=nanochat_d4", "model.depth=1", "model.vocab_size=8192", "method=full", "optim=nanochat",
        "schedule.batch_size=1", "schedule.warmup_steps=0", "schedule.max_steps=100", "hardware.precision=32-true",
    )  # fmt: skip
    net = instantiate.make(settings.model).load(torch.float32, 0)
    ids = torch.randint(8192, (1, 64), generator=torch.Generator().manual_seed(0))
    from lab.training.hardware import resolve

    found = []
    for accelerator, device in (("cpu", CPU), ("gpu", cuda)):
        hardware = resolve(Hardware(accelerator=accelerator, precision="32-true"), 1, trains_base=True)
        step = pretrain.lab(copy.deepcopy(net).to(device), settings, hardware)
        found.append([step(ids.to(device)) for _ in range(4)])
    assert found[1] == pytest.approx(found[0], rel=1e-3)
