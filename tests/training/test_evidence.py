"""Evidence is what autograd says, whatever the grouping, the batching and the processes; the net is given back."""

import io
import multiprocessing
import socket

import pytest
import torch
import torch.distributed as dist
from rich.console import Console

from lab import config
from lab.config import instantiate
from lab.data.encode import Sample
from lab.errors import UsageError
from lab.evidence import statistics
from lab.evidence.statistics import choose, gather
from lab.evidence.weight_change import warm_up, wide_run
from lab.layer import find_targets
from lab.model import weights_sha256

ALL = frozenset({"gradient", "gradient_square", "activations"})
CPU = torch.device("cpu")
BRIEF = ("model=micro", "schedule.batch_size=4", "schedule.max_steps=3", "schedule.max_epochs=null", "rank=4")


def make_net():
    return instantiate.make(config.compose("model=micro").model).load(torch.float32, 0).eval()


def samples(count=6):
    """Examples of unequal length whose first third is masked."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        ids = torch.randint(2, 4000, (9 + 3 * i,), generator=generator)
        labels = ids.clone()
        labels[: len(ids) // 3] = -100
        found.append(Sample(ids, labels, 10))
    return found


@pytest.fixture(scope="module")
def gathered():
    net = make_net()
    return net, find_targets(net), gather(net, find_targets(net), samples(), ALL, 0, CPU)


def one_by_one(net):
    """Per example: the summed loss's gradients by name, its labels, and the inputs of every layer; no padding."""
    for sample in samples():
        inputs, handles = {}, []
        for target in find_targets(net):

            def look(module, args, name=target.name, inputs=inputs):
                inputs[name] = args[0].detach()[0]

            handles.append(net.get_submodule(target.name).register_forward_pre_hook(look))
        net.requires_grad_(True).zero_grad()
        labels = int((sample.labels[1:] != -100).sum())
        out = net(input_ids=sample.input_ids[None], labels=sample.labels[None])
        (out.loss * labels).backward()
        for handle in handles:
            handle.remove()
        yield {n: p.grad.clone() for n, p in net.named_parameters()}, labels, inputs


def test_gradients_squares_and_moments_are_those_of_autograd_example_by_example(gathered):
    _, targets, found = gathered
    gradient, square, moment = {}, {}, {}
    labels = rows = 0
    for grads, count, inputs in one_by_one(make_net()):
        labels, rows = labels + count, rows + len(next(iter(inputs.values())))
        for target in targets:
            g, x = grads[f"{target.name}.weight"], inputs[target.name]
            gradient[target.name] = gradient.get(target.name, 0) + g
            square[target.name] = square.get(target.name, 0) + (g / count) ** 2 / 6
            moment[target.name] = moment.get(target.name, 0) + x.T @ x
    close = {"rtol": 1e-3, "atol": 1e-7}  # float32 sums in another order
    for target in targets:
        item = found[target.name]
        assert item.num_tokens == labels
        assert torch.allclose(item.gradient, gradient[target.name] / labels, **close)
        assert torch.allclose(item.gradient_square, square[target.name], rtol=1e-3, atol=1e-12)
        assert torch.allclose(item.activations, moment[target.name] / rows, **close)


def test_groups_of_layers_give_the_same_numbers(gathered):
    net, targets, whole = gathered
    parts = gather(net, targets, samples(), ALL, 0, CPU, sum_bytes=200_000)  # four or five layers at a time
    for name, item in whole.items():
        assert torch.equal(item.gradient, parts[name].gradient)
        assert torch.equal(item.gradient_square, parts[name].gradient_square)
        assert torch.equal(item.activations, parts[name].activations)


def test_the_net_comes_back_as_it_was(gathered):
    net = gathered[0]
    assert weights_sha256(net) == weights_sha256(make_net())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_the_choice_of_examples_is_a_function_of_the_seed():
    every = samples()
    assert choose(every, 3, 1) == choose(every, 3, 1)
    assert [id(s) for s in choose(every, 3, 1)] != [id(s) for s in choose(every, 3, 2)]
    assert len(choose(every, 100, 0)) == 6


def test_a_terminal_is_shown_how_far_the_look_is(monkeypatch):
    shown = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(statistics, "console", shown)
    net = make_net()
    gather(net, find_targets(net), samples(), frozenset({"gradient_square"}), 0, CPU)
    assert "gathering gradient square" in shown.file.getvalue()
    assert "6/6" in shown.file.getvalue()  # a backward pass per example


def test_without_examples_there_is_no_evidence():
    net = make_net()
    with pytest.raises(UsageError, match="no training side"):
        gather(net, find_targets(net), [], ALL, 0, CPU)


def test_what_is_not_finite_names_the_layer():
    net = make_net()
    with torch.no_grad():
        net.get_submodule("model.layers.1.mlp.down_proj").weight[0, 0] = torch.inf
    with pytest.raises(UsageError, match=r"the gradient of model\.layers\.0\.self_attn\.q_proj is not finite"):
        gather(net, find_targets(net), samples(), frozenset({"gradient"}), 0, CPU)


def test_a_warm_up_gives_a_change_and_the_base_back_bit_for_bit():
    net, settings = make_net(), config.compose(*BRIEF)
    targets = find_targets(net)
    found = warm_up(net, targets, samples(), settings, 0, CPU, steps=2, lr=1e-4)
    again = warm_up(net, targets, samples(), settings, 0, CPU, steps=2, lr=1e-4)
    assert weights_sha256(net) == weights_sha256(make_net())
    for target in targets:
        change = found.delta[target.name]
        assert change.shape == target.shape
        assert 0 < change.abs().max() <= 2.1e-4  # AdamW moves an entry by at most about the rate per step
        assert torch.equal(change, again.delta[target.name])
    assert found.tokens > 0


def test_one_warm_up_step_is_against_the_sign_of_the_gradient():
    net, settings = make_net(), config.compose(*BRIEF, "schedule.batch_size=6")
    targets = find_targets(net)
    gradients = gather(net, targets, samples(), frozenset({"gradient"}), 0, CPU)
    found = warm_up(net, targets, samples(), settings, 0, CPU, steps=1, lr=1e-4)
    for target in targets:
        G, change = gradients[target.name].gradient, found.delta[target.name]
        clear = G.abs() > 1e-5  # eps of AdamW and float32 noise aside
        assert torch.equal(change[clear].sign(), -G[clear].sign())


def test_a_wide_run_gives_changes_of_its_ranks_and_the_base_back():
    net, settings = make_net(), config.compose(*BRIEF)
    targets = find_targets(net)
    ranks = {target.name: 5 for target in targets}
    found = wide_run(net, targets, samples(), settings, 0, CPU, ranks=ranks)
    assert weights_sha256(net) == weights_sha256(make_net())
    assert [target.name for target in find_targets(net)] == [target.name for target in targets]
    for target in targets:
        assert 1 <= torch.linalg.matrix_rank(found.delta[target.name].double(), rtol=1e-5) <= 5


def gather_as(rank, port, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    net = make_net()
    found = gather(net, find_targets(net), samples(), ALL, 0, CPU)
    names = ("gradient", "gradient_square", "activations")
    torch.save({n: [getattr(item, what) for what in names] for n, item in found.items()}, f"{path}/{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_hold_the_same_means_and_they_are_those_of_one(gathered, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=gather_as, args=(rank, port, str(tmp_path))) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
        assert process.exitcode == 0
    first, second = torch.load(tmp_path / "0"), torch.load(tmp_path / "1")
    for name, item in gathered[2].items():
        for one, other, alone in zip(
            first[name], second[name], (item.gradient, item.gradient_square, item.activations), strict=True
        ):
            assert torch.equal(one, other)
            assert torch.allclose(one, alone, rtol=1e-3, atol=1e-9)  # float32 sums in another order
