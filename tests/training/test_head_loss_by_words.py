"""The pass over the head by blocks of words against all logits in float64, beside the pass by positions."""

import pytest
import torch
import torch.nn.functional as F

from lab.training import head_loss as module
from lab.training.head_loss import _HeadLoss, head_loss, softcap

T, WIDTH, VOCABULARY = 37, 24, 3 * 128


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Three blocks of words, pieces of 5 rows, three parts of positions of which the last is short."""
    for name, value in (("WORDS", 128), ("ROWS", 5), ("POSITIONS", 16)):
        monkeypatch.setattr(module, name, value)


def case(size=1.0, positions=T, vocabulary=VOCABULARY):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, WIDTH, generator=generator)
    weight = size * torch.randn(vocabulary, WIDTH, generator=generator)
    targets = torch.randint(20, (positions,), generator=generator)  # words that occur again and again
    return hidden, weight, targets


def truth(hidden, weight, targets, cap):
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    value = F.cross_entropy(softcap(hidden @ weight.T, cap), targets, reduction="sum")
    value.backward()
    return value.detach(), hidden.grad, weight.grad


def by(way, hidden, weight, targets, cap, factor=1.0, **rest):
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if way == "positions":
            value = _HeadLoss.apply(hidden, weight, targets, cap, torch.bfloat16, (True, True))
        else:
            value = head_loss(hidden, weight, targets, cap, **rest)
            assert type(value.grad_fn).__name__ == "_ByWordsBackward"
    (value * factor).backward()
    return value.detach(), hidden.grad, weight.grad


def relative(one, other):
    return float((one.double() - other).norm() / other.norm())


@pytest.mark.parametrize("size", [0.1, 1.0, 30.0], ids=["mild", "usual", "far beyond the cap"])
@pytest.mark.parametrize("cap", [15.0, 30.0])
def test_it_is_no_further_from_the_truth_than_the_pass_by_positions(size, cap):
    exact = truth(*case(size), cap)
    words, positions = (by(way, *case(size), cap) for way in ("words", "positions"))
    # bfloat16 rounds each logit by 2^-9: the loss, a mean over positions, by far less than 1e-3 where logits are mild.
    assert relative(words[0], exact[0]) <= max(1.1 * relative(positions[0], exact[0]), 1e-6)
    for mine, theirs, right in zip(words[1:], positions[1:], exact[1:], strict=True):
        assert relative(mine, right) <= 1.1 * relative(theirs, right)


def test_the_loss_is_that_of_the_pass_by_positions_to_six_digits():
    words, positions = (by(way, *case(), 15.0)[0] for way in ("words", "positions"))
    assert float(words) == pytest.approx(float(positions), rel=1e-6)


@pytest.mark.parametrize("known", [1 / 37, 1.0], ids=["known", "unknown"])
def test_the_scale_of_the_loss_is_in_the_gradients_once_whether_it_was_known_or_not(known):
    _, *exact = truth(*case(), 15.0)
    _, *grads = by("words", *case(), 15.0, factor=1 / 37, scale=known)
    for mine, right in zip(grads, exact, strict=True):
        assert relative(mine, right / 37) < 1e-2


def test_buffers_are_used_again_and_what_was_in_them_does_not_matter():
    buffers = {}
    first = by("words", *case(), 15.0, buffers=buffers)
    held = {name: buffer.data_ptr() for name, buffer in buffers.items()}
    for buffer in buffers.values():
        buffer.fill_(float("nan"))
    again = by("words", *case(), 15.0, buffers=buffers)
    assert {name: buffers[name].data_ptr() for name in ("weight",)} == {"weight": held["weight"]}
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_second_forward_before_the_first_backward_changes_nothing():
    hidden, weight, targets = case()
    alone = by("words", hidden, weight, targets, 15.0)
    buffers, leaf, other = {}, hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = head_loss(leaf, other, targets, 15.0, buffers=buffers)
        head_loss(-leaf, 2 * other, targets, 15.0, buffers=buffers)
    value.backward()
    assert torch.equal(leaf.grad, alone[1])
    assert torch.equal(other.grad, alone[2])


def test_weights_that_are_not_finite_give_a_loss_that_is_not():
    hidden, weight, targets = case()
    weight[7, 3] = float("nan")
    assert not torch.isfinite(by("words", hidden, weight, targets, 15.0)[0])


@pytest.mark.parametrize(
    ("cap", "vocabulary", "frozen", "autocast"),
    [
        (None, VOCABULARY, False, True),
        (15.0, 500, False, True),
        (15.0, VOCABULARY, True, True),
        (15.0, VOCABULARY, False, False),
    ],
    ids=["no softcap", "words left over", "frozen head", "float32"],
)
def test_elsewhere_the_pass_by_positions_is_taken(cap, vocabulary, frozen, autocast):
    hidden, weight, targets = case(vocabulary=vocabulary)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = head_loss(hidden.requires_grad_(), weight.requires_grad_(not frozen), targets, cap)
    assert type(value.grad_fn).__name__ == "_HeadLossBackward"
