"""What a bench says of a device: waited for, counted by its own allocator, and compared with what it can do."""

import time

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lab.bench import device as room
from lab.bench.device import PeakMemory, Stopwatch, multiplied, product_flops, seconds_of, utilisation

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_a_cpu_is_timed_by_the_clock_asked_for():
    watch = Stopwatch(CPU)
    watch.start()
    time.sleep(0.05)
    assert 0.05 <= watch.stop() < 1
    busy = Stopwatch(CPU, time.thread_time)
    busy.start()
    time.sleep(0.05)
    assert busy.stop() < 0.05, "sleep is no work of this thread"


def test_a_gpu_is_waited_for_at_both_ends_and_timed_by_its_events(monkeypatch):
    said = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            said.append("event")

        def elapsed_time(self, other):
            return 1500.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: said.append("wait"))
    watch = Stopwatch(CUDA)
    watch.start()
    said.append("work")
    assert watch.stop() == 1.5
    assert said == ["wait", "event", "work", "event", "wait"]


def test_seconds_are_of_one_call_behind_one_that_is_not_timed():
    calls = []
    seconds = seconds_of(CPU, lambda: calls.append(time.sleep(0.2 if not calls else 0.01)), repeats=4)
    assert len(calls) == 5
    assert 0.01 <= seconds < 0.05


def test_peak_memory_is_of_what_follows_and_goes_beyond_what_is_left():
    before = torch.ones(4_000_000)
    peak = PeakMemory(CPU)
    if peak.before is None:
        pytest.skip("this system does not tell resident memory")
    held = torch.ones(10_000_000)
    del held
    # what was there before is not counted; pages of other threads and the allocator's own are
    assert peak.bytes() == pytest.approx(40e6, rel=0.1)
    assert len(before) == 4_000_000


def test_a_gpus_peak_is_the_allocators(monkeypatch):
    said = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: said.append(device))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 350)
    assert PeakMemory(CUDA).bytes() == 250
    assert said == [CUDA]


def test_where_the_system_does_not_tell_no_peak_is_made_up(monkeypatch):
    monkeypatch.setattr(room, "_reset_resident_peak", lambda: None)
    assert PeakMemory(CPU).bytes() is None


def test_the_ceiling_is_a_product_that_was_timed(monkeypatch):
    monkeypatch.setattr(room, "seconds_of", lambda device, call, repeats: (call(), 0.5)[1])
    assert product_flops(CPU, torch.float32, side=32) == 2 * 32**3 / 0.5


def test_the_parameters_a_token_is_multiplied_with_are_those_of_the_forward_products():
    """Against torch's own count of the FLOPs of a forward pass, 2 a parameter and token, attention aside."""
    from torch.utils.flop_counter import FlopCounterMode

    for tied in (True, False):
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        net = LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=tied, **shape))
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            net(input_ids=torch.zeros(1, 10, dtype=torch.long), use_cache=False)
        products = counted.get_flop_counts()["Global"][torch.ops.aten.mm]
        assert products == 2 * 10 * multiplied(net)


def test_utilisation_counts_both_gradients_of_what_trains_and_one_of_what_is_frozen():
    """Against torch's own count of forward and backward, whose first layer needs no gradient of its input."""
    from torch.utils.flop_counter import FlopCounterMode

    for kind in ("lora", "full"):
        net = nn.Linear(16, 16, bias=False)
        net.requires_grad_(kind == "full")
        with FlopCounterMode(display=False) as counted:
            net(torch.randn(8, 16, requires_grad=True)).sum().backward()
        assert utilisation(kind, multiplied(net), 8, 1.0) == counted.get_total_flops()
