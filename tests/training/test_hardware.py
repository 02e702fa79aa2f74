"""What a job runs on: refused where it is not there, split so that the global batch stays, and fitted to memory."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lab.config import Hardware
from lab.data.encode import Sample
from lab.errors import UsageError
from lab.launch import worker
from lab.training import hardware, memory


def test_the_micro_batch_divides_a_ranks_share_of_the_batch():
    for batch, devices in ((16, 1), (24, 2), (21, 1), (64, 2)):
        found = hardware.resolve(Hardware(accelerator="cpu", devices=devices), batch)
        assert found.micro * found.accumulate * devices == batch
        assert found.micro <= hardware.MICRO_BATCH["cpu"]


def test_more_gpus_than_there_are_are_refused_with_a_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match=r"asks for 8 CUDA device\(s\) and torch \S+ sees 1; use hardware=cpu"):
        hardware.resolve(Hardware(accelerator="gpu", devices=8), 16)


@pytest.mark.parametrize(("capable", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_gpu_computes_in_bf16_where_it_has_it(capable, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: capable)
    found = hardware.resolve(Hardware(accelerator="auto"), 16)
    assert (found.accelerator, found.precision) == ("gpu", precision)
    asked = hardware.resolve(Hardware(accelerator="gpu", devices=8, precision="bf16-true"), 64)
    assert (asked.precision, asked.compute_dtype, asked.micro, asked.accumulate) == ("bf16-true", torch.bfloat16, 8, 1)


def test_ranks_of_different_versions_are_refused(monkeypatch):
    resolved = hardware.resolve(Hardware(accelerator="cpu", devices=2), 4)

    def gather(found, mine):
        found[0], found[1] = mine, {**mine, "peft": "0.1"}

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    with pytest.raises(UsageError, match=r"different versions of peft: \S+ \(rank 0\), 0.1 \(rank 1\)"):
        hardware.join_group(resolved)


def test_the_largest_divisor_that_fits_is_found():
    tried = []

    def attempt(size):
        tried.append(size)
        if size > 3:
            raise torch.OutOfMemoryError("out of memory")

    assert memory.largest_that_fits(12, 24, attempt) == 3
    assert tried == [12, 8, 6, 4, 3]
    assert memory.largest_that_fits(2, 2, lambda size: attempt(9)) == 0


def test_ranks_agree_on_the_smallest_micro_batch_that_any_found(monkeypatch):
    others = torch.tensor([2])

    def all_reduce(mine, op):
        assert op == dist.ReduceOp.MIN
        mine.copy_(torch.minimum(mine, others))

    assert memory.agree(8, torch.device("cpu")) == 8  # alone
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    assert memory.agree(8, torch.device("cpu")) == 2
    assert memory.agree(1, torch.device("cpu")) == 1


def test_another_error_of_the_probe_is_not_taken_for_lack_of_memory():
    def attempt(size):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        memory.largest_that_fits(4, 4, attempt)


class Tiny(nn.Module):
    """A causal language model as far as the loss looks: an embedding, dropout, a head."""

    def __init__(self):
        super().__init__()
        self.embedding, self.dropout, self.head = nn.Embedding(11, 6), nn.Dropout(0.5), nn.Linear(6, 11)

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=self.head(self.dropout(self.embedding(input_ids))))


def samples(*lengths):
    ids = [torch.arange(length) % 11 for length in lengths]
    return [Sample(input_ids=x, labels=x, num_bytes=len(x)) for x in ids]


def test_the_probe_leaves_gradients_mode_hooks_and_random_state_as_they_were():
    net = Tiny().eval()
    before = {name: p.clone() for name, p in net.named_parameters()}
    state = torch.get_rng_state()
    memory.probe(net, samples(5, 3), 0, torch.device("cpu"), autocast=False)
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert not net.training
    assert not net.head._forward_pre_hooks
    assert torch.equal(torch.get_rng_state(), state)


def test_the_longest_examples_are_probed():
    assert [len(sample.input_ids) for sample in memory.longest(samples(3, 9, 5, 7), 2)] == [9, 7]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_later_is_one_sentence_with_the_remedy(error):
    found = worker._out_of_memory(error)
    assert "the last checkpoint is intact: resume it with a smaller hardware.micro_batch_size" in str(found)
    assert worker._out_of_memory(RuntimeError("something else")) is None
