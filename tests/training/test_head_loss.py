"""The loss of a large vocabulary against torch's own on all logits, and the gate that decides which is taken."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from lab.training import head_loss as module
from lab.training.head_loss import LARGE_VOCABULARY, head_loss, softcap
from lab.training.loss import LabelGate, first_bad_module, token_loss

POSITIONS, WIDTH, VOCABULARY = 37, 24, 501
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture
def several_chunks(monkeypatch):
    """Chunks of 8 positions, the last one short, in pieces of 3."""
    monkeypatch.setitem(module.CHUNK, "cpu", 8 * VOCABULARY)
    monkeypatch.setattr(module, "IN_CACHE", 3 * VOCABULARY)


def case(scale=0.5):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, WIDTH, generator=generator).requires_grad_()
    weight = (scale * torch.randn(VOCABULARY, WIDTH, generator=generator)).requires_grad_()
    return hidden, weight, torch.randint(VOCABULARY, (POSITIONS,), generator=generator)


def plain(hidden, weight, targets, cap):
    return F.cross_entropy(softcap(hidden @ weight.T, cap), targets, reduction="sum")


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("scale", [0.5, 30.0], ids=["mild logits", "logits far beyond the cap"])
@pytest.mark.parametrize("cap", [None, 15.0])
def test_loss_and_gradients_are_those_of_all_logits(cap, scale, several_chunks):
    values = []
    for loss in (head_loss, plain):
        hidden, weight, targets = case(scale)
        value = loss(hidden, weight, targets, cap) / POSITIONS
        value.backward()
        values.append((value.detach(), hidden.grad, weight.grad))
    for found, expected in zip(*values, strict=True):
        assert relative(found, expected) < 1e-5


def test_a_frozen_head_gets_no_gradient_and_its_input_the_same(several_chunks):
    hidden, weight, targets = case()
    head_loss(hidden, weight, targets, 15.0).backward()
    free = hidden.grad.clone()
    hidden.grad = weight.grad = None
    head_loss(hidden, weight.requires_grad_(False), targets, 15.0).backward()
    assert weight.grad is None
    assert torch.equal(hidden.grad, free)


def test_without_gradients_the_loss_is_the_same(several_chunks):
    hidden, weight, targets = case()
    with torch.no_grad():
        silent = head_loss(hidden, weight, targets, 15.0)
    assert not silent.requires_grad
    assert torch.equal(silent, head_loss(hidden, weight, targets, 15.0).detach())


def test_micro_batches_add_up(several_chunks):
    hidden, weight, targets = case()
    head_loss(hidden, weight, targets, 15.0).backward()
    whole, weight.grad = weight.grad, None
    for part in (slice(0, 20), slice(20, None)):
        head_loss(hidden[part], weight, targets[part], 15.0).backward()
    assert relative(weight.grad, whole) < 1e-5


def test_no_position_means_no_loss_and_a_zero_gradient():
    hidden, weight, targets = case()
    value = head_loss(hidden[:0], weight, targets[:0], 15.0)
    value.backward()
    assert float(value.detach()) == 0.0
    assert not weight.grad.any()


def test_under_autocast_it_is_as_close_to_float32_as_the_plain_loss(several_chunks):
    hidden, weight, targets = case()
    plain(hidden, weight, targets, 15.0).backward()
    exact, errors = weight.grad.clone(), []
    for loss in (head_loss, plain):
        weight.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(hidden, weight, targets, 15.0)
        value.backward()
        errors.append(relative(weight.grad, exact))
    assert 1e-4 < errors[0] < 1.5 * errors[1], "bfloat16 was used, and rounds no more often"


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen = max([self.seen, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))])
        return out


def test_all_logits_are_never_held(several_chunks):
    hidden, weight, targets = case()
    with Largest() as largest:
        head_loss(hidden, weight, targets, 15.0).backward()
    assert largest.seen == weight.numel() > 8 * VOCABULARY
    with Largest() as largest:
        plain(hidden, weight, targets, 15.0).backward()
    assert largest.seen == POSITIONS * VOCABULARY


def toy(kind, **numbers):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, **{**SIZES, "vocab_size": LARGE_VOCABULARY, "pad_token_id": None, "initializer_range": 0.3, **numbers}
    )
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("kind", "numbers", "passes_by"),
    [
        ("nanochat", {}, True),
        ("gemma2", {"head_dim": 16, "num_key_value_heads": 2}, True),
        ("llama", {"tie_word_embeddings": True}, True),
        ("llama", {"vocab_size": 500}, False),
        ("granite", {"logits_scaling": 3.0}, False),
    ],
    ids=["softcap", "softcap of 30, tied", "nothing, tied", "small vocabulary", "logits divided by 3"],
)
def test_the_head_is_passed_by_only_where_that_is_the_same(kind, numbers, passes_by):
    net = toy(kind, **numbers)
    net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    net.train()
    ids = torch.randint(500, (2, 9), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :5] = -100
    with LabelGate(net) as gate:
        assert gate.passes_by == passes_by
        token_loss(net, gate, ids, labels).backward()
    found = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    logits = net(input_ids=ids, use_cache=False).logits[:, :-1].float()
    F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum").backward()
    for name, p in net.named_parameters():
        assert torch.allclose(found[name], p.grad, atol=1e-5 * float(p.grad.abs().max()) + 1e-9), name


def test_a_head_that_is_not_a_plain_linear_layer_is_never_passed_by():
    net = toy("llama", tie_word_embeddings=False)
    net.lm_head = nn.Sequential(net.lm_head)
    net.lm_head.out_features = LARGE_VOCABULARY
    assert not LabelGate(net).passes_by


def test_looking_at_the_head_draws_no_random_number():
    net = toy("gemma2", head_dim=16, num_key_value_heads=2, attention_dropout=0.5).train()
    state = torch.get_rng_state()
    LabelGate(net)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_head_with_a_bad_weight_is_named_though_it_is_passed_by():
    net = toy("nanochat")
    net.lm_head.weight.data[3, 3] = float("nan")
    ids = torch.arange(8)[None]
    assert first_bad_module(net, LabelGate(net), ids, ids) == "lm_head"
