"""The training bench: every contender does the work that the table says, on the device that it names."""

import subprocess
from dataclasses import replace

import pytest
import torch
from torch import nn

from lab.bench import MODELS, contender, loops, train
from lab.bench.ground import CONTENDERS, GROUNDS, Ground, scratch
from lab.bench.loops import Work, bare_loop, lab_loop
from lab.bench.shapes import LLAMA_135M, TINY
from lab.config import instantiate
from lab.data.encode import Sample
from lab.training.hardware import Resolved

SMALL = Ground(scratch({**LLAMA_135M, **TINY, "vocab_size": 4096}), 4, CONTENDERS, same_batches=True)
META = torch.device("meta")
GPU = Resolved("gpu", 1, "32-true", 2, 1, 1)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contenders")
    return {name: contender.measure(name, 6, folder, SMALL, 4) for name in CONTENDERS}


def test_the_command_line_offers_the_grounds_there_are():
    assert tuple(GROUNDS) == MODELS


def test_the_135m_ground_is_the_shape_it_names():
    model = instantiate.make(GROUNDS["135m"].settings(8).model)
    assert sum(p.numel() for p in model.skeleton().parameters()) == 134_515_008  # SmolLM2-135M's card


def test_contenders_on_the_same_batches_have_the_same_loss(measured):
    losses = {name: row["loss"] for name, row in measured.items()}
    assert losses["lab"] == pytest.approx(losses["bare loop"], rel=1e-5)
    # peft draws another A, and nothing else differs: B starts at 0, and six steps move the loss by half a percent
    assert losses["Trainer + peft"] == pytest.approx(losses["lab"], rel=5e-3)
    assert losses["lab init=svd"] == pytest.approx(losses["lab"], rel=2e-2)
    assert {row["parameters"] for row in measured.values()} == {2 * (64 * 64 * 3 + 3 * 64 * 96) + 64 * 4096}


def test_every_contender_counts_the_same_real_tokens(monkeypatch, tmp_path):
    ids = [torch.randint(2, 4096, (length,)) for length in (5, 9, 20, 7, 12, 3, 30, 8)]
    samples = [Sample(input_ids=x, labels=x, num_bytes=len(x)) for x in ids]
    work = Work(samples, 0, batch=2, steps=4, warm_up=2)
    expected = sum(len(sample.input_ids) for step in (2, 3) for sample in work.examples(step))
    settings = SMALL.settings(2, "hardware=cpu", "hardware.precision=32-true")
    from lab.run.setup import resolve_hardware

    hardware, model = resolve_hardware(settings), instantiate.make(settings.model)
    for loop in ("lab", "bare"):
        adapted, _ = contender.adapted_base(model, settings, hardware, work)
        done = (
            lab_loop(adapted.model, work, settings, hardware, tmp_path)
            if loop == "lab"
            else bare_loop(adapted.net, work, settings, hardware)
        )
        assert done.tokens == expected
    trained = loops.trainer_loop(
        model.load(torch.float32, 0), work, model.tokenizer(), 1e-3, torch.device("cpu"), tmp_path, False, True
    )
    assert trained.tokens == expected


def test_the_lab_trains_where_its_hardware_says(monkeypatch, tmp_path):
    asked = {}

    class Lightning:
        def __init__(self, **how):
            asked.update(how)

        def fit(self, module, loader):
            raise InterruptedError

    class Model:
        net = nn.Module()

    monkeypatch.setattr(loops, "Lightning", Lightning)
    monkeypatch.setattr(loops, "_Staying", lambda run, hardware: Staying())
    monkeypatch.setattr(loops, "Run", lambda *parts: None)
    with pytest.raises(InterruptedError):
        lab_loop(Model(), Work(few(), 0, 2, 2), None, GPU, tmp_path)
    assert (asked["accelerator"], asked["devices"]) == ("gpu", 1)


class Staying:
    scorer = torch.no_grad()


def few():
    ids = torch.arange(4)
    return [Sample(input_ids=ids, labels=ids, num_bytes=4) for _ in range(4)]


def test_the_bare_loops_batches_go_to_the_device_of_its_net(monkeypatch):
    seen = []
    net = nn.Linear(2, 1)

    class Scorer:
        def __init__(self, net, device, autocast):
            assert device == META

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def nats(self, input_ids, labels):
            seen.append((input_ids.device, labels.device))
            return net.weight.sum()

    monkeypatch.setattr(loops, "Scorer", Scorer)
    monkeypatch.setattr(Resolved, "device", META)
    bare_loop(net, Work(few(), 0, 2, 3, warm_up=1), SMALL.settings(2), replace(GPU, accelerator="cpu"))
    assert seen == [(META, META)] * 3


def test_a_number_under_another_devices_name_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(contender, "bench_device", lambda: META)
    with pytest.raises(AssertionError, match="bare loop trained on cpu, under the name of meta"):
        contender.measure("bare loop", 5, tmp_path, SMALL, 2)


def test_the_table_names_device_ceiling_and_batches_and_survives_an_unknown_peak(measured, monkeypatch):
    monkeypatch.setattr("lab.bench.device.product_flops", lambda device, dtype: 1e12)
    results = {name: [row, row] for name, row in measured.items()}
    results["lab"] = [{**measured["lab"], "peak_bytes": None}]
    rows = train._rows(results, {"model": "135m", "batch": 4, "repeats": 2, "same_batches": True})
    first = rows[0]
    assert first["peak_bytes"] is None
    assert first["lab_ratio"] == 1.0
    assert first["mfu"] == 4 * first["parameters"] * first["tokens_per_second"] / 1e12
    assert all(row["device"] and row["ceiling_dtype"] in ("float32", "bfloat16") for row in rows)


def test_only_the_first_gpu_is_seen_by_a_contender(monkeypatch):
    given = {}

    def start(line, env, **how):
        given.update(env)
        return subprocess.CompletedProcess(line, 0, stdout='{"loss": 1}\n', stderr="")

    monkeypatch.setattr(subprocess, "run", start)
    for visible, first in (("3,5", "3"), (None, "0")):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert train.measure("lab", 5, "base", 16) == {"loss": 1}
        assert given["CUDA_VISIBLE_DEVICES"] == first
