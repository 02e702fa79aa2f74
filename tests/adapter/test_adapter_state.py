"""A checkpoint of adapters alone rebuilds the exact model, with no scheme, no data and no SVD."""

import pytest
import torch
from adapter_models import MODELS, Case, Noise, OneSided, Principal, base, case, installed, logits, train
from test_initialise import Rounded

from lab.adapter.layer import adapted_layers
from lab.adapter.state import adapter_state, load_adapter_state
from lab.adapter.verify import Mismatch

SCHEMES = {
    "separate": (Principal("separate"), False),
    "fold": (Principal("fold"), False),
    "none": (Noise(), False),
    "another base": (Rounded(), False),
    "dora": (OneSided(), True),
}


def copied(ours: Case) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in adapter_state(ours.model).items()}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_install_and_load_give_the_exact_model(model: str, scheme: str, tmp_path) -> None:
    made, use_dora = SCHEMES[scheme]
    ours = case(base(model), made, use_dora=use_dora)
    train(ours.model)
    torch.save(copied(ours), tmp_path / "adapters.ckpt")
    _, _, fresh = installed(base(model), use_dora=use_dora)
    load_adapter_state(fresh, torch.load(tmp_path / "adapters.ckpt", weights_only=True))
    assert torch.equal(logits(fresh), logits(ours.model))
    with fresh.disable_adapter(), ours.model.disable_adapter():
        assert torch.equal(logits(fresh), logits(ours.model))
    assert {n: p.requires_grad for n, p in fresh.named_parameters()} == {
        n: p.requires_grad for n, p in ours.model.named_parameters()
    }
    again = adapter_state(fresh)
    assert again.keys() == copied(ours).keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in copied(ours).items())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_earlier_state_loads_over_a_later_one_in_place(scheme: str) -> None:
    made, use_dora = SCHEMES[scheme]
    ours = case(base("llama"), made, use_dora=use_dora)
    train(ours.model, 1)
    early, expected = copied(ours), logits(ours.model)
    parameters = [id(p) for p in ours.model.parameters()]
    train(ours.model, 2)
    load_adapter_state(ours.model, early)
    assert torch.equal(logits(ours.model), expected)
    assert [id(p) for p in ours.model.parameters()] == parameters  # an optimizer keeps its hold on them


def test_the_names_are_those_of_the_base_and_no_base_weight_is_among_them() -> None:
    ours = case(base("llama"))
    names = {target.name for target in ours.targets}
    assert adapter_state(ours.model).keys() == {
        f"{name}.{leaf}" for name in names for leaf in ("A", "B", "separate_A", "separate_B")
    }


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s, n: s.pop(f"{n}.A"), r"lacks \['A'\]"),
        (lambda s, n: s.pop(f"{n}.separate_B"), r"lacks \['separate_B'\]"),
        (lambda s, n: [s.pop(f"{n}.separate_{x}") for x in "AB"], r"lacks \['separate_A', 'separate_B'\]"),
        (lambda s, n: s.update({f"{n}.C": torch.ones(1)}), r"adds \['C'\]"),
        (lambda s, n: s.update({"lm_head.A": torch.ones(1)}), "lm_head has no adapter"),
        (lambda s, n: s.update({f"{n}.B": s[f"{n}.B"].T}), r"\.B is .* in the state and .* in the model"),
    ],
)
def test_a_state_of_another_model_is_refused_and_nothing_written(spoil, said: str) -> None:
    ours = case(base("llama"))
    before = copied(ours)
    train(ours.model, 1)
    expected = logits(ours.model)
    spoil(before, ours.targets[-1].name)
    with pytest.raises(Mismatch, match=said):
        load_adapter_state(ours.model, before)
    assert torch.equal(logits(ours.model), expected)


def test_a_folded_base_takes_no_other_fold() -> None:
    ours = case(base("llama"), Principal("fold"))
    state = copied(ours)
    state[f"{ours.targets[2].name}.fold_A"] *= 2
    with pytest.raises(Mismatch, match="already given up another"):
        load_adapter_state(ours.model, state)
    load_adapter_state(ours.model, copied(ours))  # its own is taken, and not twice
    pristine = case(base("llama"), Principal("fold"))
    assert torch.equal(logits(ours.model), logits(pristine.model))


def test_a_state_without_an_offset_does_not_fit_a_model_with_one() -> None:
    plain, offset = case(base("llama"), Noise()), case(base("llama"))
    with pytest.raises(Mismatch, match=r"lacks.*separate_A"):
        load_adapter_state(offset.model, copied(plain))
    load_adapter_state(plain.model, copied(offset))  # the other way round the offset is rebuilt
    assert all(layer.offset == "separate" for layer in adapted_layers(plain.model).values())
